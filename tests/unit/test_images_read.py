"""Reading a file: only the claimed version, only beneath its root, and every failure under its own name."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from featd.errors import ImageError
from featd.images import read as read_module
from featd.images.read import ChangedError, ImageBytes, read_image
from featd.states import Kind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"some bytes")
    return folder


def read(
    root: Path,
    name: bytes = b"a.jpg",
    *,
    size: int | None = None,
    mtime_ns: int | None = None,
    **options: bool | int,
) -> ImageBytes:
    found = os.lstat(os.fsencode(root) + b"/" + name) if size is None or mtime_ns is None else None
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return read_image(
            fd,
            name,
            found.st_size if size is None else size,
            found.st_mtime_ns if mtime_ns is None else mtime_ns,
            **options,
        )
    finally:
        os.close(fd)


def kind_of(*args: object, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(*args, **options)
    return caught.value


def test_bytes_and_hash(root: Path) -> None:
    image = read(root)
    assert image == ImageBytes(b"some bytes", "xxh3_128:" + xxhash.xxh3_128(b"some bytes").hexdigest())


@pytest.mark.parametrize(
    "name", [b"caf\xc3\xa9 bad\xff.jpg", b"with blank.jpg", b"new\nline.jpg", b"back\\slash.jpg"]
)
def test_any_name(root: Path, name: bytes) -> None:
    (root / os.fsdecode(name)).write_bytes(b"x" * 100_000)
    assert len(read(root, name).data) == 100_000


def test_another_version_is_not_read(root: Path) -> None:
    found = (root / "a.jpg").stat()
    for size, mtime_ns in ((found.st_size + 1, found.st_mtime_ns), (found.st_size, found.st_mtime_ns - 1)):
        error = kind_of(root, size=size, mtime_ns=mtime_ns)
        assert isinstance(error, ChangedError)
        assert error.kind is Kind.READ_CHANGED
        assert (error.size, error.mtime_ns) == (found.st_size, found.st_mtime_ns)


@pytest.mark.parametrize("change", ["written", "grown", "shrunk", "touched"])
def test_a_change_while_reading_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    inner = read_module.read_bytes
    path = root / "a.jpg"

    def slow(fd: int, size: int) -> bytes:
        if change == "written":
            path.write_bytes(b"other byte")
        elif change == "grown":
            path.write_bytes(b"some bytes and more")
        elif change == "shrunk":
            os.truncate(path, 3)
        os.utime(path, ns=(0, 1_700_000_000_000_000_000))
        return inner(fd, size)

    monkeypatch.setattr(read_module, "read_bytes", slow)
    error = kind_of(root)
    assert error.kind is Kind.READ_CHANGED
    assert isinstance(error, ChangedError)
    assert (error.size, error.mtime_ns) == (path.stat().st_size, 1_700_000_000_000_000_000)


def test_a_file_replaced_while_reading_gives_the_old_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One descriptor: what was claimed is what is read, whatever stands under the name now."""
    inner = read_module.read_bytes

    def slow(fd: int, size: int) -> bytes:
        (root / "new").write_bytes(b"new content")
        (root / "new").rename(root / "a.jpg")
        return inner(fd, size)

    monkeypatch.setattr(read_module, "read_bytes", slow)
    assert read(root).data == b"some bytes"


def test_missing(root: Path) -> None:
    assert kind_of(root, b"none.jpg", size=1, mtime_ns=1).kind is Kind.READ_MISSING
    error = kind_of(root, b"a.jpg/below.jpg", size=1, mtime_ns=1)
    assert error.kind is Kind.READ_MISSING


def test_links_and_ways_out(root: Path) -> None:
    secret = root.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    (root / "link.jpg").symlink_to(secret)
    (root / "up").symlink_to(root.parent)
    (root / "inside.jpg").symlink_to("a.jpg")
    for name in (b"link.jpg", b"up/secret.jpg", b"../secret.jpg", os.fsencode(secret), b"inside.jpg"):
        error = kind_of(root, name, size=6, mtime_ns=1)
        assert error.kind is Kind.READ_MISSING
        assert "link" in error.message or "out of its root" in error.message
    for name in (b"link.jpg", b"up/secret.jpg"):
        error = kind_of(root, name, size=6, mtime_ns=secret.stat().st_mtime_ns, follow_symlinks=True)
        assert error.kind is Kind.READ_MISSING
        assert "out of its root" in error.message
    target = (root / "a.jpg").stat()
    followed = read(
        root, b"inside.jpg", size=target.st_size, mtime_ns=target.st_mtime_ns, follow_symlinks=True
    )
    assert followed.data == b"some bytes"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", ["fifo", "socket", "folder"])
def test_what_is_no_file_is_not_opened(root: Path, what: str) -> None:
    path = root / "x.jpg"
    with socket.socket(socket.AF_UNIX) as listening:
        if what == "fifo":
            os.mkfifo(path)
        elif what == "socket":
            listening.bind(str(path))
        else:
            path.mkdir()
        error = kind_of(root, b"x.jpg")
    assert error.kind is Kind.READ_MISSING
    assert "regular file" in error.message


def test_a_file_beyond_the_limit_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "read_bytes", lambda fd, size: pytest.fail("read"))
    assert kind_of(root, max_bytes=9).kind is Kind.DECODE_TOO_LARGE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, Kind.READ_IO),
        (errno.ESTALE, Kind.READ_IO),
        (errno.EMFILE, Kind.READ_IO),
        (errno.EACCES, Kind.READ_DENIED),
        (errno.EPERM, Kind.READ_DENIED),
    ],
)
def test_errors_of_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Kind) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(read_module, "read_bytes", fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    error = kind_of(root)
    assert error.kind is kind
    assert os.strerror(code) in error.message
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_look_up_that_raced_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = read_module.open_beneath
    turns = []

    def racing(*args: object, **options: object) -> int:
        turns.append(1)
        if len(turns) < 3:
            raise BlockingIOError(errno.EAGAIN, "again")
        return inner(*args, **options)

    monkeypatch.setattr(read_module, "open_beneath", racing)
    assert read(root).data == b"some bytes"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_no_permission(root: Path) -> None:
    for folder in (root, *root.parents[:4]):
        if folder != Path("/tmp"):
            folder.chmod(0o755)
    (root / "a.jpg").chmod(0o600)
    found = (root / "a.jpg").stat()
    script = f"""
import os
from featd.images.read import read_image
from featd.errors import ImageError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
fd = os.open({str(root)!r}, os.O_PATH)
try:
    read_image(fd, b"a.jpg", {found.st_size}, {found.st_mtime_ns})
except ImageError as error:
    print(error.kind, error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("read.denied Permission denied")
