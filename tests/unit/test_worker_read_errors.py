"""An error of reading is an image's own only where another file of its root can be read after it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from featd.states import ClaimedImage, Failure, Kind
from featd.worker import read_errors as module
from featd.worker.read_errors import DOUBTFUL, ReadErrors


def image(root: Path, name: str) -> ClaimedImage:
    return ClaimedImage(1, str(root), name, 1, 1, 1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    (tmp_path / "good.jpg").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("kind", sorted(DOUBTFUL))
def test_it_counts_once_another_file_was_read_after_it(root: Path, kind: Kind) -> None:
    put: list[Failure] = []
    errors = ReadErrors(put.append, lambda root: None)
    errors.read(image(root, "good.jpg"))
    errors.add(Failure(image(root, "bad.jpg"), kind, "EIO"))
    assert put == []
    assert errors
    errors.step()
    assert [one.counted for one in put] == [True]
    assert not errors
    assert errors.rounds == {}


def test_a_worker_that_has_read_nothing_asks_the_catalog_for_a_done_file(root: Path) -> None:
    put: list[Failure] = []
    errors = ReadErrors(put.append, lambda root: "good.jpg")
    errors.add(Failure(image(root, "bad.jpg"), Kind.READ_IO, "EIO"))
    errors.step()
    assert put[0].counted


def test_where_nothing_can_be_read_nothing_counts_and_it_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put: list[Failure] = []
    errors = ReadErrors(put.append, lambda root: "gone.jpg")
    errors.read(image(root, "good.jpg"))
    (root / "good.jpg").unlink()
    for _ in range(3):
        for name in ("a.jpg", "b.jpg"):
            errors.add(Failure(image(root, name), Kind.READ_IO, "EIO"))
        errors.step()
    assert [one.counted for one in put] == [False] * 6
    assert errors.rounds == {str(root): 3}
    events = [vars(record)["event"] for record in caplog.records]
    assert events.count("root_in_doubt") == 1
    errors.read(image(root, "c.jpg"))  # the disk is back
    assert errors.rounds == {}


def test_a_file_that_never_answers_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def blocks(root_fd: int, raw: bytes, *, follow_symlinks: bool) -> int:
        go_on.wait(30)
        raise OSError

    monkeypatch.setattr(module, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(module, "open_beneath", blocks)
    try:
        assert not module.can_read(str(root), "good.jpg")
    finally:
        go_on.set()


def test_a_file_that_is_a_link_can_be_read_where_links_are_followed(root: Path) -> None:
    (root / "link.jpg").symlink_to("good.jpg")
    assert module.can_read(str(root), "link.jpg")
    assert not module.can_read(str(root), "nothing.jpg")
