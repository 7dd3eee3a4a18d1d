"""Whether a shard's file is the one that was sealed."""

from __future__ import annotations

from pathlib import Path

from featd.shards.layout import ShardError
from featd.shards.read import checksum

MOST = 100_000
"""Shards that are remembered as sound."""


class Verified:
    """Compares shards with the checksums that the catalog recorded, each once."""

    def __init__(self) -> None:
        self._sound: set[Path] = set()

    def check(self, path: Path, recorded: str) -> None:
        """ShardError where the file has other bytes; FileNotFoundError; another OSError where it cannot be read."""
        if path in self._sound:
            path.lstat()
            return
        if checksum(path) != recorded:
            raise ShardError(f"{path}: damaged: its bytes differ from the recorded checksum")
        if len(self._sound) >= MOST:
            self._sound.clear()
        self._sound.add(path)

    def fault(self, path: Path, recorded: str) -> str | None:
        """`missing` or `damaged`; None where the file is sound, or cannot be read: then nothing is known."""
        try:
            self.check(path, recorded)
        except FileNotFoundError:
            return "missing"
        except ShardError:
            return "damaged"
        except OSError:
            return None
        return None
