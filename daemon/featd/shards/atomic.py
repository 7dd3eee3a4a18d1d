"""The only place where files appear: made as `.part` in their folder, fsynced, renamed, the folder fsynced.

Leaving out any one of these lost the file in a power cut. An fsync that failed is never tried again on the same
file: the kernel may have thrown the pages away and would then report success. The file is removed instead.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from featd.crash_points import CrashPoint, crash_point

FOLDER_MODE = 0o750
FILE_MODE = 0o640
PUBLIC_FOLDER_MODE = 0o777
PUBLIC_FILE_MODE = 0o666
"""Of what a user asked for, such as an export: the umask decides who may read it."""
PART = ".part"


def part_of(path: Path) -> Path:
    """The name a file has until it is complete."""
    return path.with_name(path.name + PART)


def create_part(path: Path, *, public: bool = False) -> int:
    """Create `path`'s .part, which must not exist, and its folders; returns a descriptor to read and write.
    `public`: the umask alone decides who may read them."""
    make_folder(path.parent, PUBLIC_FOLDER_MODE if public else FOLDER_MODE)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(part_of(path), flags, PUBLIC_FILE_MODE if public else FILE_MODE)


def link_part(source: Path, path: Path) -> None:
    """As `path`'s .part, which must not exist, another name of a complete file that never changes. OSError."""
    make_folder(path.parent)
    os.link(source, part_of(path))


def publish_part(path: Path, renamed: CrashPoint = CrashPoint.FILE_RENAMED) -> None:
    """Give `path`'s .part, already fsynced, its name, and make that durable. OSError; then the .part is gone or
    the name may or may not be on stable storage: the caller gives the file up."""
    part_of(path).rename(path)
    crash_point(renamed)
    _fsync_folder(path.parent)


def remove_part(path: Path) -> None:
    """Remove `path`'s .part if it is there. Never raises: a leftover is the janitor's to find."""
    with contextlib.suppress(OSError):
        part_of(path).unlink()


def move_file(path: Path, target: Path) -> None:
    """Rename a complete file, perhaps into a folder that is yet to be made, and make that durable. OSError."""
    make_folder(target.parent)
    path.rename(target)
    _fsync_folder(target.parent)
    _fsync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there, so that it does not come back after a power cut. OSError."""
    path.unlink(missing_ok=True)
    _fsync_folder(path.parent)


def make_folder(path: Path, mode: int = FOLDER_MODE) -> None:
    """Make a folder and those above it, each durable in its parent."""
    if path.is_dir():
        return
    make_folder(path.parent, mode)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    # Also where somebody else was quicker: his fsync may still be to come, and our file depends on it.
    _fsync_folder(path.parent)


def write_atomically(path: Path, data: bytes, *, public: bool = False) -> None:
    """Make or replace a small file: readers see the old or the new content, whole. `public`: as in create_part.
    OSError."""
    remove_part(path)  # what a kill left behind
    fd = create_part(path, public=public)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        publish_part(path)
    except OSError:
        remove_part(path)
        raise


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
