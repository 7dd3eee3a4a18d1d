"""Weights in temporary files that are mapped: the kernel can take their pages back, which it cannot do with those of
Python's own memory. A net has hundreds of megabytes of them, and hardly needs them once its engine is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from featd import logs
from featd.paths import open_regular

_log = logs.get("net")

_PREFIX: Final = "featd-weights-"
_ATTEMPTS: Final = 10
_CHUNK_BYTES: Final = 1 << 22
_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def copy_of(path: Path, most_bytes: int | None = None) -> tuple[memoryview, str]:
    """All bytes of a file that a person named, and their SHA-256 in hex: see `copied`. OSError as
    `featd.paths.open_regular` and reading give it."""
    with open_regular(path, most_bytes) as source:
        return copied(source, str(path))


def copied(source: BinaryIO, name: str) -> tuple[memoryview, str]:
    """All bytes of an open file, and their SHA-256 in hex. Nobody can change them any more, for they are a copy without
    a name, which ends with the process. OSError."""
    hashed = hashlib.sha256()
    try:
        with tempfile.TemporaryFile() as file:
            while chunk := source.read(_CHUNK_BYTES):
                hashed.update(chunk)
                file.write(chunk)
            file.flush()
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        source.seek(0)
        raw = source.read()
        if raw:
            warn_of_no_room(name, error)
        return memoryview(raw), hashlib.sha256(raw).hexdigest()
    _mappings.add(mapping)
    return memoryview(mapping), hashed.hexdigest()


def rest() -> None:
    """Give memory back that nothing needs at present: the pages of the copies, which come back when they are read, and
    what the allocator keeps of what was freed."""
    for mapping in list(_mappings):
        mapping.madvise(mmap.MADV_DONTNEED)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that have to have a name. Removes those of processes that were killed, too. OSError."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    with contextlib.ExitStack() as held:
        yield _new_folder(held)


def _new_folder(held: contextlib.ExitStack) -> Path:
    """A folder that is locked. Until it is, another process may take it for one that was left, and remove it."""
    for attempt in range(_ATTEMPTS):
        name = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        folder = Path(held.enter_context(name))
        try:
            held.enter_context(_locked(folder))
            break
        except (BlockingIOError, FileNotFoundError):
            if attempt == _ATTEMPTS - 1:
                raise
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process. BlockingIOError where another one holds it,
    FileNotFoundError where another one has removed it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
        yield
    finally:
        os.close(fd)


def warn_of_no_room(net: str, error: Exception) -> None:
    """Warn that weights stay in memory."""
    _log.warning(
        "weights_in_memory",
        "cannot write weights into the folder for temporary files; loading them in memory, which takes several times"
        " as much of it: set TMPDIR to a folder with room",
        net=net,
        error=str(error),
    )
