"""Whether a shard's file is the one that was sealed."""

from __future__ import annotations

import errno
import stat
from enum import StrEnum
from pathlib import Path

from featd.shards.layout import ShardError
from featd.shards.read import checksum


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
        """ShardError where the file has other bytes, or is no file; FileNotFoundError; another OSError where it cannot
        be read."""
        try:
            found = path.stat()
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, "its folder is a file", str(path)) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ShardError(f"{path}: damaged: a link to itself") from None
            raise
        if not stat.S_ISREG(found.st_mode):
            raise ShardError(f"{path}: damaged: not a regular file")
        if path in self._sound:
            return
        if checksum(path) != recorded:
            raise ShardError(f"{path}: damaged: its bytes differ from the recorded checksum")
        if len(self._sound) >= MOST:
            self._sound.clear()
        self._sound.add(path)

    def fault(self, path: Path, recorded: str) -> Fault | None:
        """What is wrong with it; None where it is sound."""
        try:
            self.check(path, recorded)
        except FileNotFoundError:
            return Fault.MISSING
        except ShardError:
            return Fault.DAMAGED
        except OSError:
            return Fault.UNREADABLE
        return None
