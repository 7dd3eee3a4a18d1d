"""Hints are merged and bounded, whatever the watch says."""

from __future__ import annotations

import pytest
from watchdog import events

from featd.config import RootConfig
from featd.ingest.hints import Hint, Hints, Trouble
from featd.ingest.root import Doubts
from featd.ingest.watch import Handler, file_system
from featd.roots import Globs


@pytest.fixture
def woken() -> list[None]:
    return []


@pytest.fixture
def hints(woken: list[None]) -> Hints:
    return Hints(lambda: woken.append(None), max_paths=3, max_folders=2)


def handler(hints: Hints, **options: object) -> Handler:
    root = RootConfig.model_validate({"path": "/images", **options})
    return Handler(b"/images", root, Globs(root.include, root.exclude), hints)


def test_the_last_word_on_a_path_counts(hints: Hints, woken: list[None]) -> None:
    for hint in (Hint.CREATED, Hint.CLOSED, Hint.ATTRIB):
        hints.put(b"a", hint)
    for hint in (Hint.CLOSED, Hint.GONE, Hint.ATTRIB):
        hints.put(b"b", hint)
    for hint in (Hint.GONE, Hint.CREATED):
        hints.put(b"c", hint)
    assert hints.take().paths == {b"a": Hint.CLOSED, b"b": Hint.ATTRIB, b"c": Hint.CREATED}
    assert woken
    assert hints.take().paths == {}


def test_too_many_paths_become_folders_and_too_many_folders_everything(hints: Hints) -> None:
    for number in range(5):
        hints.put(b"sub/deep/%d.jpg" % number, Hint.CLOSED)
    taken = hints.take()
    assert len(taken.paths) == 3
    assert taken.folders == {b"sub/deep": Hint.CLOSED}
    for number in range(9):
        hints.doubt(b"%d" % number)
    assert hints.take().folders == {b"": Hint.CREATED}


def test_events_become_hints(hints: Hints) -> None:
    hear = handler(hints, exclude=["thumbs", "*.part.jpg"]).dispatch
    hear(events.FileCreatedEvent("/images/a.jpg"))
    hear(events.FileMovedEvent("/images/b.part.jpg", "/images/b.jpg"))
    hear(events.FileMovedEvent("", "/images/c\udcff.jpg"))
    hear(events.FileClosedEvent("/images/notes.txt"))
    hear(events.FileClosedEvent("/images/thumbs/a.jpg"))
    hear(events.DirMovedEvent("/images/old", "/images/thumbs"))
    taken = hints.take()
    assert taken.paths == {b"a.jpg": Hint.CREATED, b"b.jpg": Hint.CLOSED, b"c\xff.jpg": Hint.CLOSED}
    assert taken.folders == {b"old": Hint.GONE}
    assert taken.troubles == {}
    hear(events.DirDeletedEvent("/images/new"))
    hear(events.DirCreatedEvent("/images/new"))
    assert hints.take().folders == {b"new": Hint.CREATED}


def test_an_event_that_is_not_understood_is_told_and_ends_nothing(hints: Hints) -> None:
    handler(hints).dispatch(events.FileCreatedEvent("/elsewhere/a.jpg"))
    assert hints.take().troubles == {Trouble.HANDLER: 1}


def test_where_links_are_followed_everything_is_in_doubt(hints: Hints) -> None:
    handler(hints, follow_symlinks=True).dispatch(events.FileClosedEvent("/images/sub/a.jpg"))
    assert list(hints.take().folders) == [b""]


def test_a_folder_is_scanned_with_all_beneath_it_and_what_went_before_what_came() -> None:
    doubts = Doubts()
    doubts.add(dict.fromkeys([b"b/c", b"a-b", b"a/x/y", b"a", b"a/x"], Hint.CREATED))
    doubts.add({b"z": Hint.GONE, b"a/z": Hint.GONE})
    taken = []
    while (folder := doubts.take_folder()) is not None:
        taken.append(folder)
    assert taken == [b"a/z", b"z", b"a", b"a-b", b"b/c"]
    doubts.everything = False
    doubts.add({b"%d" % number: Hint.CREATED for number in range(5000)})
    assert doubts.everything
    assert not doubts.folders


def test_the_file_system_is_told() -> None:
    assert file_system("/proc") == "proc"
    assert file_system("/no/such/place") == ""
