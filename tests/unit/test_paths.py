"""Names of files: any bytes come back; nothing outside a root is opened; an empty mount point is not believed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd import paths, roots
from featd.paths import for_terminal, from_catalog, open_beneath, to_catalog
from featd.roots import RootState, root_state


@given(st.binary(max_size=200))
def test_any_bytes_come_back(raw: bytes) -> None:
    text = to_catalog(raw)
    assert from_catalog(text) == raw
    assert len(text.splitlines()) <= 1
    text.encode()  # no surrogates: any database takes it


@given(st.text(max_size=100))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    if text.isprintable() and "\\" not in text:
        assert to_catalog(text.encode()) == text


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_different_names_stay_different(one: bytes, other: bytes) -> None:
    assert (to_catalog(one) == to_catalog(other)) == (one == other)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\\b", "a\\\\b"),
        (b"\xff.jpg", "\\xff.jpg"),
        (b"a\nb", "a\\x0ab"),
        ("é\u2028".encode(), "é\\xe2\\x80\\xa8"),
        (b"\\xff", "\\\\xff"),
        (b"\x1b[31m", "\\x1b[31m"),
    ],
)
def test_examples(raw: bytes, text: str) -> None:
    assert to_catalog(raw) == text


@pytest.mark.parametrize("text", ["\\", "a\\b", "\\x", "\\xg0", "\\x0"])
def test_what_is_no_catalog_form(text: str) -> None:
    with pytest.raises(ValueError, match="catalog form"):
        from_catalog(text)


@given(st.text(max_size=100))
def test_terminals_are_safe(text: str) -> None:
    assert for_terminal(text).isprintable()


def test_root_states(tmp_path: Path) -> None:
    assert root_state(tmp_path) is RootState.EMPTY
    (tmp_path / "file").touch()
    assert root_state(tmp_path) is RootState.ONLINE
    assert root_state(tmp_path / "file") is RootState.MISSING
    assert root_state(tmp_path / "nothing") is RootState.MISSING


def test_a_root_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead NFS mount blocks every look at it, for ever."""
    (tmp_path / "file").touch()
    go_on = threading.Event()
    real = os.scandir

    def blocks(path: Path) -> Any:
        go_on.wait(30)
        return real(path)

    monkeypatch.setattr(roots, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(os, "scandir", blocks)
    before = threading.active_count()
    assert [root_state(tmp_path) for _ in range(5)] == [RootState.SILENT] * 5
    assert threading.active_count() == before + 1, "no thread piles up behind another"
    go_on.set()
    end = time.monotonic() + 20
    while root_state(tmp_path) is not RootState.ONLINE:
        assert time.monotonic() < end


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub/a.jpg").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (inside / "link.jpg").symlink_to(tmp_path / "secret")
    (inside / "near.jpg").symlink_to("sub/a.jpg")
    (inside / "folder").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.jpg")
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of opening: the kernel's own, and the one for kernels that do not know it."""
    if request.param == "step by step":
        monkeypatch.setattr(paths, "_SYS_OPENAT2", 100_000)  # no such system call: ENOSYS
    return str(request.param)


def test_a_file_beneath_is_opened(root: int, way: str) -> None:
    fd = open_beneath(root, b"sub/a.jpg")
    assert os.read(fd, 100) == b"inside"
    os.close(fd)


@pytest.mark.parametrize(
    "name",
    [
        b"link.jpg",
        b"near.jpg",
        b"folder/secret",
        b"../secret",
        b"sub/../../secret",
        b"/etc/passwd",
        b"pipe.jpg",
        b"sub",
        b"missing",
    ],
)
def test_nothing_else_is_opened(root: int, way: str, name: bytes) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r".") as raised:
        open_beneath(root, name)
    assert raised.value.errno in (errno.ELOOP, errno.EXDEV, errno.EINVAL, errno.ENOENT, errno.ENOTDIR)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_are_followed_where_asked_as_long_as_they_stay(root: int) -> None:
    fd = open_beneath(root, b"near.jpg", follow_symlinks=True)
    assert os.read(fd, 100) == b"inside"
    os.close(fd)
    with pytest.raises(OSError, match=r"."):
        open_beneath(root, b"link.jpg", follow_symlinks=True)
