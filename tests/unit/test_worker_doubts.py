"""An error of reading is an image's own only where another file of its root can be read after it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from featd.states import ClaimedImage, Failure, Kind
from featd.worker import doubts as doubts_module
from featd.worker.doubts import DOUBTFUL, Doubts


def image(root: Path, name: str) -> ClaimedImage:
    return ClaimedImage(1, str(root), name, 1, 1, 1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doubts_module, "WAIT_SECONDS", 0.0)
    (tmp_path / "good.jpg").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("kind", sorted(DOUBTFUL))
def test_it_counts_once_another_file_was_read_after_it(root: Path, kind: Kind) -> None:
    put: list[Failure] = []
    doubts = Doubts(put.append, lambda root: None)
    doubts.read(image(root, "good.jpg"))
    doubts.add(Failure(image(root, "bad.jpg"), kind, "EIO"))
    assert put == []
    assert doubts
    doubts.step()
    assert [one.counted for one in put] == [True]
    assert not doubts
    assert doubts.rounds == {}


def test_a_worker_that_has_read_nothing_asks_the_catalog_for_a_done_file(root: Path) -> None:
    put: list[Failure] = []
    doubts = Doubts(put.append, lambda root: "good.jpg")
    doubts.add(Failure(image(root, "bad.jpg"), Kind.READ_IO, "EIO"))
    doubts.step()
    assert put[0].counted


def test_where_nothing_can_be_read_nothing_counts_and_it_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put: list[Failure] = []
    doubts = Doubts(put.append, lambda root: "gone.jpg")
    doubts.read(image(root, "good.jpg"))
    (root / "good.jpg").unlink()
    for _ in range(3):
        for name in ("a.jpg", "b.jpg"):
            doubts.add(Failure(image(root, name), Kind.READ_IO, "EIO"))
        doubts.step()
    assert [one.counted for one in put] == [False] * 6
    assert doubts.rounds == {str(root): 3}
    events = [vars(record)["event"] for record in caplog.records]
    assert events.count("root_in_doubt") == 1
    doubts.read(image(root, "c.jpg"))  # the disk is back
    assert doubts.rounds == {}


def test_a_file_that_never_answers_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def blocks(root_fd: int, raw: bytes, *, follow_symlinks: bool) -> int:
        go_on.wait(30)
        raise OSError

    monkeypatch.setattr(doubts_module, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(doubts_module, "open_beneath", blocks)
    try:
        assert not doubts_module.can_read(str(root), "good.jpg")
    finally:
        go_on.set()


def test_a_file_that_is_a_link_can_be_read_where_links_are_followed(root: Path) -> None:
    (root / "link.jpg").symlink_to("good.jpg")
    assert doubts_module.can_read(str(root), "link.jpg")
    assert not doubts_module.can_read(str(root), "nothing.jpg")
