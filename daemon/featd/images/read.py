"""Reading an image file beneath its root, once, and only in the version that was claimed. Translates the kernel's
errors into kinds of failure. Decodes nothing.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import xxhash

from featd.errors import ImageError
from featd.paths import mtime_of, open_beneath
from featd.states import Kind

MAX_FILE_BYTES = 512 * 1024 * 1024
"""A larger file is not a photo; reading it would only displace other files from the page cache."""

_DENIED = frozenset({errno.EACCES, errno.EPERM})
_NOT_THERE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a folder of its path is now a file",
    errno.ELOOP: "now a symbolic link, or behind one",
    errno.EXDEV: "the path leads out of its root",
    errno.EINVAL: "not a regular file",
    errno.ENXIO: "not a regular file",  # a socket
    errno.ENODEV: "not a regular file",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


class ChangedError(ImageError):
    """`read.changed`: the file is not, or no longer, the claimed version. Has the size and time that were found."""

    def __init__(self, message: str, size: int, mtime_ns: int) -> None:
        super().__init__(Kind.READ_CHANGED, message)
        self.size = size
        self.mtime_ns = mtime_ns


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """A file's bytes and their hash, `xxh3_128:<hex>`."""

    data: bytes
    content: str


def content_hash(data: bytes) -> str:
    """The hash that names a file's bytes in the catalog and in shards."""
    return "xxh3_128:" + xxhash.xxh3_128_hexdigest(data)


def read_image(
    root_fd: int,
    raw_path: bytes,
    size: int,
    mtime_ns: int,
    *,
    follow_symlinks: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
) -> ImageBytes:
    """Read the file `raw_path` beneath the folder `root_fd`, if it is the version of `size` and `mtime_ns`.

    One descriptor serves both fstats and the read, so that a file swapped in between is seen. ImageError of
    kind read.missing, read.denied, read.io or decode.too_large (above `max_bytes`); ChangedError where size
    or mtime differ before or after. Never blocks on a FIFO.
    """
    try:
        fd = _open(root_fd, raw_path, follow_symlinks)
        try:
            _expect(fd, size, mtime_ns, "since it was claimed")
            if size > max_bytes:
                raise ImageError(Kind.DECODE_TOO_LARGE, f"a file of {size} bytes; the limit is {max_bytes}")
            data = read_bytes(fd, size)
            _expect(fd, size, mtime_ns, "while it was read")
        finally:
            os.close(fd)
    except OSError as error:
        raise _explain(error) from error
    if len(data) != size:
        raise ImageError(Kind.READ_IO, f"reading gave {len(data)} bytes of a file of {size}")
    return ImageBytes(data, content_hash(data))


def _open(root_fd: int, raw_path: bytes, follow_symlinks: bool) -> int:
    # openat2 returns EAGAIN when a rename anywhere raced with its look-up: try again, a few times.
    for _ in range(16):
        try:
            return open_beneath(root_fd, raw_path, follow_symlinks=follow_symlinks)
        except BlockingIOError as error:
            last = error
    raise last


def _expect(fd: int, size: int, mtime_ns: int, when: str) -> None:
    found = os.fstat(fd)
    found_ns = mtime_of(found)
    if (found.st_size, found_ns) != (size, mtime_ns):
        raise ChangedError(
            f"the file changed {when}: {size} bytes of {mtime_ns} ns became "
            f"{found.st_size} bytes of {found_ns} ns",
            found.st_size,
            found_ns,
        )


def read_bytes(fd: int, size: int) -> bytes:
    """All bytes of a file, or fewer: the fstat that follows shows whether the file shrank or grew."""
    parts = [os.read(fd, size)]
    while parts[-1] and (left := size - sum(map(len, parts))):
        parts.append(os.read(fd, left))
    return b"".join(parts)


def _explain(error: OSError) -> ImageError:
    code = error.errno or 0
    reason = os.strerror(code)
    if code in _DENIED:
        return ImageError(Kind.READ_DENIED, f"{reason}: give featd's user the right to read it")
    if code in _NOT_THERE:
        return ImageError(Kind.READ_MISSING, _NOT_THERE[code])
    return ImageError(Kind.READ_IO, f"reading failed: {reason} (errno {code})")
