"""Names of files: their catalog form and back, and opening them beneath a root.

A path on disk is bytes. Its catalog form is text that any terminal, log or database can hold: UTF-8,
except that a backslash is doubled, and each control byte and each byte that is not UTF-8 is `\\xNN`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")


def to_catalog(raw: bytes) -> str:
    r"""The catalog form of a path's bytes. Bijective: `from_catalog` gives the same bytes back.

    >>> to_catalog(b"caf\xc3\xa9/a\\b\xff\n.jpg")
    'café/a\\\\b\\xff\\x0a.jpg'
    """
    text = raw.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    if text.isprintable():
        return text
    return "".join(_escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    # C0, DEL and C1 controls, and the line separators that some readers split lines at.
    if code < 0x20 or 0x7F <= code <= 0x9F or code in (0x2028, 0x2029):
        return "".join(f"\\x{byte:02x}" for byte in char.encode())
    return char


def from_catalog(text: str) -> bytes:
    """The bytes of a path given in catalog form. ValueError where `text` is not one."""
    if "\\" not in text:
        return text.encode()
    out = bytearray()
    at = 0
    while (slash := text.find("\\", at)) >= 0:
        out += text[at:slash].encode()
        match = _ESCAPED.match(text, slash)
        if match is None:
            raise ValueError(f"not a path in catalog form (a backslash stands alone): {text!r}")
        out += bytes([int(match[1], 16)]) if match[1] else b"\\"
        at = match.end()
    out += text[at:].encode()
    return bytes(out)


def full_path(root: str, path: str) -> str:
    """A root, as it stands in the catalog, and a path in it together, in catalog form."""
    return f"{to_catalog(os.fsencode(root)).rstrip('/')}/{path}"


MOST_CATALOG_BYTES = 2000
"""PostgreSQL's index holds 2,704 bytes of root and path; a path on Linux may have 4,095, and more in catalog form."""
_KEPT_BYTES = 200


def stand_in(path: str) -> str:
    """The name under which a file stands in the catalog where the database does not take its path: its first folders,
    two slashes, which no path has, and a hash. A shorter path stands for itself."""
    encoded = path.encode()
    if len(encoded) <= MOST_CATALOG_BYTES:
        return path
    import hashlib  # here: OpenSSL takes longer to load than most commands need to begin

    start = encoded[:_KEPT_BYTES].decode(errors="ignore").rpartition("/")[0] or "..."
    return f"{start}//{hashlib.sha256(encoded).hexdigest()}"


def is_stand_in(path: str) -> bool:
    """Whether `path` stands for another that the database does not take."""
    return "//" in path


def for_terminal(text: str) -> str:
    """`text` with characters that could control a terminal (escape codes, bidirectional overrides) as `\\u....`."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


# openat2(2), Linux 5.6: the kernel refuses `..`, absolute paths and links on every component.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mtime_of(found: os.stat_result) -> int:
    """The time of a file's last change in nanoseconds, limited to the 64 bits of a database (the years 1677 to 2262):
    file systems hold more."""
    return _limited(found.st_mtime_ns)


def ctime_of(found: os.stat_result) -> int:
    """The same for the last change of anything about the file, which nobody can set."""
    return _limited(found.st_ctime_ns)


def _limited(nanoseconds: int) -> int:
    if -(2**63) <= nanoseconds < 2**63:
        return nanoseconds
    return 2**63 - 1 if nanoseconds > 0 else -(2**63)


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """All bytes of a file named by a person; OSError as `open_regular` gives it."""
    with open_regular(path, most_bytes) as file:
        return file.read()


def open_regular(path: Path, most_bytes: int | None = None) -> BinaryIO:
    """Open a file named by a person for reading. Never waits for a FIFO, never reads a device endlessly.

    OSError as open(2) gives it; EINVAL where it is a Git LFS pointer or not a regular file, EFBIG where it has more
    than `most_bytes`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    file = open(fd, "rb")  # noqa: PTH123, SIM115 -- the caller closes it
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if most_bytes is not None and found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes", str(path))
        if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
            raise OSError(
                errno.EINVAL, "a Git LFS pointer, not the file itself: run `git lfs pull`", str(path)
            )
    except BaseException:
        file.close()
        raise
    return file


def open_beneath(root_fd: int, raw: bytes, *, follow_symlinks: bool = False) -> int:
    """Open the regular file `raw` beneath the folder `root_fd` for reading; returns its descriptor.

    No component may leave the root; none may be a symbolic link unless `follow_symlinks`. Never blocks on a
    FIFO. OSError as open(2) gives it (ELOOP, EXDEV for a link or path that leads out); EINVAL where the name
    is not a regular file.
    """
    fd = _open(root_fd, raw, os.O_NONBLOCK | os.O_NOCTTY, follow_symlinks)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(raw))
    return fd


def open_folder_beneath(root_fd: int, raw: bytes) -> int:
    """The same for the folder `raw` (empty: the root itself). No component may be a symbolic link."""
    if not raw:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    return _open(root_fd, raw, os.O_DIRECTORY, False)


def _open(root_fd: int, raw: bytes, more_flags: int, follow_symlinks: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | more_flags
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | (0 if follow_symlinks else _RESOLVE_NO_SYMLINKS)
    how = _OpenHow(flags, 0, resolve)
    fd: int = _libc.syscall(
        _SYS_OPENAT2, root_fd, ctypes.c_char_p(raw), ctypes.byref(how), ctypes.sizeof(how)
    )
    if fd < 0:
        code = ctypes.get_errno()
        # ENOSYS: an old kernel; EPERM: a sandbox that does not know the call.
        if code not in (errno.ENOSYS, errno.EPERM) or follow_symlinks:
            raise OSError(code, os.strerror(code), os.fsdecode(raw))
        fd = _open_step_by_step(root_fd, raw, flags)
    return fd


def _open_step_by_step(root_fd: int, raw: bytes, flags: int) -> int:
    """What openat2 does, one component at a time, each with O_NOFOLLOW."""
    parts = raw.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(raw))
    at = os.dup(root_fd)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return os.open(parts[-1], flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)
