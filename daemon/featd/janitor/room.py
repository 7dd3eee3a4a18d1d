"""Says that workers claim nothing because the store's disk has less room than `store.min_free`, and that they go on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, stats
from featd.shards.store import free_bytes, lacks_room

log = logs.get("janitor")

DRAIN_SECONDS = 10.0
"""A drain that finds no room for so long ends."""


class Room:
    """`look` is called every second or so; the workers of this host look for themselves."""

    def __init__(self, catalog: sa.Engine, store: Path, min_free: int) -> None:
        self._catalog = catalog
        self._store = store
        self._min_free = min_free
        self._lacking_since: float | None = None

    @property
    def lacking(self) -> bool:
        """Whether the last look found too little."""
        return self._lacking_since is not None

    def look(self, now: float) -> None:
        """Look at the disk, and log a change. `now` is monotonic."""
        lacking = lacks_room(self._store, self._min_free)
        if lacking == self.lacking:
            return
        if lacking:
            log.warning(
                "store_lacks_room",
                "the store's disk has less than min_free: workers finish what they have and claim nothing more;"
                " make room, or lower store.min_free, and they go on by themselves",
                **self._numbers(),
            )
        else:
            log.info("store_has_room", "the store's disk has room again: workers go on", **self._numbers())
        self._lacking_since = now if lacking else None

    def _numbers(self) -> dict[str, int]:
        """In bytes: what is free, what must be, and about what the images that are to do will take."""
        numbers = {"min_free": self._min_free}
        with contextlib.suppress(OSError):
            numbers["free"] = free_bytes(self._store)
        with connect.reading(self._catalog) as conn:
            needed = stats.bytes_to_do(conn)
        return numbers | ({} if needed is None else {"needed": needed})

    def ends_drain(self, now: float) -> str:
        """Why a drain waits no longer, and what to do; empty while it goes on."""
        if self._lacking_since is None or now - self._lacking_since < DRAIN_SECONDS:
            return ""
        return f"the disk of {self._store} has less than store.min_free ({self._min_free:,} bytes): make room"
