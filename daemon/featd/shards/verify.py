"""Whether a shard's file is the one that was sealed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from featd.shards.checksum import checksum, hashing
from featd.shards.layout import ShardError


class Fault(StrEnum):
    """What is wrong with a shard's file."""

    MISSING = "missing"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"  # a disk error, no permission: nothing is known of its content

    @property
    def lost(self) -> bool:
        """Whether its vectors are lost, as far as this file goes."""
        return self is not Fault.UNREADABLE


MOST = 100_000
"""Shards that are remembered as sound."""


class Verified:
    """Compares shards with the checksums that the catalog recorded, each once."""

    def __init__(self) -> None:
        self._sound: set[Path] = set()

    def check(self, path: Path, recorded: str) -> None:
        """ShardError where the file has other bytes, or is no file; FileNotFoundError where it is not in its folder,
        which can be read; another OSError where it, or the folder, cannot be read."""
        if not self._is_known(path):
            self._compare(path, checksum(path), recorded)

    def checking(self, path: Path, recorded: str) -> Iterator[int]:
        """The same in steps of a few milliseconds, for who has other things to do."""
        if self._is_known(path):
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._compare(path, (yield from hashing(fd)), recorded)
        finally:
            os.close(fd)

    def _is_known(self, path: Path) -> bool:
        """Whether it is there and was compared before."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            _look_into_folder(path.parent)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ShardError(f"{path}: damaged: a link to itself") from None
            raise
        if not stat.S_ISREG(found.st_mode):
            raise ShardError(f"{path}: damaged: not a regular file")
        return path in self._sound

    def _compare(self, path: Path, found: str, recorded: str) -> None:
        if found != recorded:
            raise ShardError(f"{path}: damaged: its bytes differ from the recorded checksum")
        if len(self._sound) >= MOST:
            self._sound.clear()
        self._sound.add(path)

    def fault(self, path: Path, recorded: str) -> Fault | None:
        """What is wrong with it; None where it is sound."""
        try:
            self.check(path, recorded)
        except (ShardError, OSError) as error:
            return fault_of(error)
        return None


def fault_of(error: ShardError | OSError) -> Fault:
    """What an error of `Verified.check` says of the shard."""
    if isinstance(error, ShardError):
        return Fault.DAMAGED
    return Fault.MISSING if isinstance(error, FileNotFoundError) else Fault.UNREADABLE


def _look_into_folder(folder: Path) -> None:
    """OSError where the folder cannot be read, or the first above it that is there: then nothing is known of a file
    that seems to be missing."""
    while True:
        try:
            os.scandir(folder).close()
            return
        except (FileNotFoundError, NotADirectoryError):
            folder = folder.parent
