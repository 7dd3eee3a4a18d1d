"""The store's marker."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from featd.errors import EXIT_BAD_CONFIG, EXIT_OUT_OF_REACH, StoreUnavailableError
from featd.processes.seats import folder_of
from featd.shards.atomic import make_folder
from featd.shards.store import (
    MARK,
    MARKER,
    Mark,
    OtherStoreError,
    StoreKey,
    check_readable,
    check_store,
    create_store,
    read_mark,
    shards_folder,
    write_mark,
    write_marker,
)

ONE = StoreKey("one")


def test_a_store_is_made_once(tmp_path: Path) -> None:
    store = tmp_path / "a" / "store"
    create_store(store, ONE)
    before = (store / MARKER).stat().st_mtime_ns
    create_store(store, ONE)
    check_store(store, ONE)
    assert (store / MARKER).stat().st_mtime_ns == before
    assert shards_folder(store).is_dir()


def test_it_belongs_to_one_instance(tmp_path: Path) -> None:
    create_store(tmp_path, ONE)
    for call in (create_store, check_store):
        with pytest.raises(StoreUnavailableError, match="'one'"):
            call(tmp_path, StoreKey("two"))


@pytest.mark.parametrize("left", ["nothing", "an empty mount point", "a file"])
def test_what_is_not_there_may_be_unmounted(tmp_path: Path, left: str) -> None:
    store = tmp_path / "store"
    create_store(store, ONE)
    shutil.rmtree(store)
    if left == "an empty mount point":
        store.mkdir()
    elif left == "a file":
        store.write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match=r"is the (right )?disk mounted") as caught:
        check_store(store, ONE)
    assert str(store) in str(caught.value)
    assert caught.value.exit_code == EXIT_OUT_OF_REACH


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_marker_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKER).write_bytes(content)
    for call in (create_store, check_store):
        with pytest.raises(StoreUnavailableError, match="damaged"):
            call(tmp_path, ONE)
    assert (tmp_path / MARKER).read_bytes() == content


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text('{"format": 2, "instance": "one"}')
    with pytest.raises(StoreUnavailableError, match="format 2"):
        check_store(tmp_path, ONE)


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_store(tmp_path, ONE)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreUnavailableError, match="cannot write"):
        check_store(tmp_path, ONE)


def test_the_folder_of_a_seat_is_for_featd_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = folder_of(tmp_path / "run", "host.example")
        make_folder(folder)
    finally:
        os.umask(old)
    assert folder == tmp_path / "run" / "host.example"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert folder_of(tmp_path / "run", "host.example") == folder
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="seat"):
            folder_of(tmp_path / "run", name)


@pytest.mark.parametrize(
    ("marked", "known", "said"),
    [
        (None, (None,), None),  # as a store of 0.1.0
        (None, (None, "1-aa"), None),  # a start is changing it
        ("1-aa", (None, "1-aa"), None),
        ("1-aa", ("1-aa",), None),
        (None, ("1-aa",), "left behind"),
        ("1-aa", ("2-bb",), "left behind"),
        ("1-aa", ("1-bb",), "left behind"),
        ("2-bb", ("1-aa",), "catalog is older"),
        ("10-bb", ("9-aa",), "catalog is older"),
        ("1-aa", (None,), "catalog is older"),
    ],
)
def test_a_copy_that_was_left_behind_is_refused(
    tmp_path: Path, marked: str | None, known: tuple[str | None, ...], said: str | None
) -> None:
    create_store(tmp_path, ONE)
    write_marker(tmp_path, "one", marked)
    for call in (check_store, check_readable, create_store):
        if said is None:
            call(tmp_path, StoreKey("one", known))
            continue
        with pytest.raises(OtherStoreError, match=said) as caught:
            call(tmp_path, StoreKey("one", known))
        assert caught.value.exit_code == EXIT_BAD_CONFIG
        assert "featd db restored" in str(caught.value)


@pytest.mark.parametrize("damage", [None, b"", b"{}", b"[]", b'{"newest_shard": null}', b"\xff"])
def test_a_mark_that_cannot_be_read_refuses_nothing(tmp_path: Path, damage: bytes | None) -> None:
    write_mark(tmp_path, Mark(7, 2))
    assert read_mark(tmp_path) == Mark(7, 2)
    if damage is None:
        (tmp_path / MARK).unlink()
    else:
        (tmp_path / MARK).write_bytes(damage)
    assert read_mark(tmp_path) == Mark()
