"""Bringing shards from one folder into another: linked where both are on one file system, else copied.

A shard never changes, so that one that is there is not brought again. Each is compared with its checksum as it is
brought, once.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import xxhash

from featd.catalog.dump import CopiedShard
from featd.crash_points import CrashPoint, crash_point
from featd.errors import StoreUnavailableError, reason
from featd.shards.atomic import create_part, link_part, part_of, publish_part, remove_part
from featd.shards.checksum import checksum
from featd.shards.layout import ShardError

BLOCK = 1 << 20

Advance = Callable[[int, int], None]
"""Called with the bytes that are brought or were there, and those of all shards."""


@dataclass(slots=True)
class Brought:
    """`new`, `bytes`: shards that were brought. `faulty`: path -> why a shard that images name could not be; `missing`
    are those of them that are not there."""

    new: int = 0
    bytes: int = 0
    faulty: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def bring_all(shards: Sequence[CopiedShard], source: Path, target: Path, advance: Advance) -> Brought:
    """Bring those shards into the folder `target` that it lacks. StoreUnavailableError where it cannot be written."""
    brought = Brought()
    total = sum(shard.bytes for shard in shards)
    passed = 0
    for shard in shards:
        advance(passed, total)
        passed += shard.bytes
        if PurePosixPath(shard.path).is_absolute() or ".." in PurePosixPath(shard.path).parts:
            brought.faulty[shard.path] = "not a path below the store"
            continue
        if _size(target / shard.path) == shard.bytes:
            continue
        try:
            _bring(source / shard.path, target / shard.path, shard.checksum)
            brought.new += 1
            brought.bytes += shard.bytes
        except (FileNotFoundError, NotADirectoryError):
            if shard.live:
                brought.faulty[shard.path] = "missing"
                brought.missing.append(shard.path)
        except (ShardError, OSError) as error:
            if shard.live:
                cannot = "" if isinstance(error, ShardError) else "cannot be read: "
                brought.faulty[shard.path] = f"{cannot}{reason(error)}"
    advance(total, total)
    return brought


def _bring(source: Path, target: Path, recorded: str) -> None:
    """ShardError where the file is not what was recorded; OSError where it cannot be read."""
    if not stat.S_ISREG(source.lstat().st_mode):
        raise ShardError("damaged: not a regular file")
    remove_part(target)
    try:
        found = checksum(part_of(target)) if _link(source, target) else _copy(source, target)
        if found != recorded:
            raise ShardError("damaged: its bytes differ from the recorded checksum")
        crash_point(CrashPoint.BACKUP_SHARD_WRITTEN)
        with _writing(target):
            publish_part(target)
    except BaseException:
        remove_part(target)
        raise
    crash_point(CrashPoint.BACKUP_SHARD)


def _link(source: Path, target: Path) -> bool:
    """False where the two cannot be one file: on different file systems, or of another owner."""
    try:
        link_part(source, target)
    except OSError:
        return False  # if that is for another reason, copying meets it too
    return True


def _copy(source: Path, target: Path) -> str:
    """Copy into the .part; the checksum of what was read."""
    digest = xxhash.xxh3_128()
    with source.open("rb") as file:
        with _writing(target):
            fd = create_part(target)
        try:
            while block := file.read(BLOCK):
                digest.update(block)
                left = memoryview(block)
                with _writing(target):
                    while left:
                        left = left[os.write(fd, left) :]
            with _writing(target):
                os.fsync(fd)
        finally:
            os.close(fd)
    return "xxh3_128:" + digest.hexdigest()


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"{target}: cannot be written: {reason(error)}") from error


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except OSError:
        return None
