"""The store's marker."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from featd.errors import EXIT_OUT_OF_REACH, StoreUnavailableError
from featd.shards.atomic import make_folder
from featd.shards.store import MARKER, check_store, create_store, run_folder, shards_folder


def test_a_store_is_made_once(tmp_path: Path) -> None:
    store = tmp_path / "a" / "store"
    create_store(store, "one")
    before = (store / MARKER).stat().st_mtime_ns
    create_store(store, "one")
    check_store(store, "one")
    assert (store / MARKER).stat().st_mtime_ns == before
    assert shards_folder(store).is_dir()


def test_it_belongs_to_one_instance(tmp_path: Path) -> None:
    create_store(tmp_path, "one")
    for call in (create_store, check_store):
        with pytest.raises(StoreUnavailableError, match="'one'"):
            call(tmp_path, "two")


@pytest.mark.parametrize("left", ["nothing", "an empty mount point", "a file"])
def test_what_is_not_there_may_be_unmounted(tmp_path: Path, left: str) -> None:
    store = tmp_path / "store"
    create_store(store, "one")
    shutil.rmtree(store)
    if left == "an empty mount point":
        store.mkdir()
    elif left == "a file":
        store.write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match=r"is the (right )?disk mounted") as caught:
        check_store(store, "one")
    assert str(store) in str(caught.value)
    assert caught.value.exit_code == EXIT_OUT_OF_REACH


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_marker_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKER).write_bytes(content)
    for call in (create_store, check_store):
        with pytest.raises(StoreUnavailableError, match="damaged"):
            call(tmp_path, "one")
    assert (tmp_path / MARKER).read_bytes() == content


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text('{"format": 2, "instance": "one"}')
    with pytest.raises(StoreUnavailableError, match="format 2"):
        check_store(tmp_path, "one")


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_store(tmp_path, "one")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreUnavailableError, match="cannot write"):
        check_store(tmp_path, "one")


def test_run_folder_is_for_featd_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = run_folder(tmp_path, "host.example")
        make_folder(folder)
    finally:
        os.umask(old)
    assert folder == tmp_path / "run" / "host.example"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert run_folder(tmp_path, "host.example") == folder
    for host in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="host"):
            run_folder(tmp_path, host)
