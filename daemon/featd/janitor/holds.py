"""Why workers claim nothing although images wait: the store's disk has less room than `store.min_free`, or featd is
paused. The workers find that out by themselves; the janitor says it, and ends a drain that waits for it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, pause, stats
from featd.catalog.pause import Pause
from featd.shards.store import free_bytes, lacks_room

log = logs.get("janitor")

DRAIN_SECONDS = 10.0
"""A drain whose workers have been held for so long ends."""


class Room:
    """Whether the store's disk has room. `look` is called every second or so."""

    def __init__(self, catalog: sa.Engine, store: Path, min_free: int) -> None:
        self.since: float | None = None
        """When the first look of a row found too little (monotonic); None where the last one did not."""
        self._catalog = catalog
        self._store = store
        self._min_free = min_free

    def look(self, now: float) -> None:
        """Look at the disk, and log a change. `now` is monotonic."""
        lacking = lacks_room(self._store, self._min_free)
        if lacking == (self.since is not None):
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
        self.since = now if lacking else None

    def _numbers(self) -> dict[str, int]:
        """In bytes: what is free, what must be, and about what the images that are to do will take."""
        numbers = {"min_free": self._min_free}
        with contextlib.suppress(OSError):
            numbers["free"] = free_bytes(self._store)
        with connect.reading(self._catalog) as conn:
            needed = stats.bytes_to_do(conn)
        return numbers | ({} if needed is None else {"needed": needed})

    @property
    def status(self) -> str:
        """For `systemctl status`; empty where there is room."""
        return "" if self.since is None else "the store's disk has less than min_free: nothing is claimed"

    @property
    def way_out(self) -> str:
        """What is wrong, and what to do before another drain."""
        return f"the disk of {self._store} has less than store.min_free ({self._min_free:,} bytes): make room"


class Paused:
    """Whether this host is paused. `look` is called every second or so."""

    def __init__(self, catalog: sa.Engine, host: str) -> None:
        self.since: float | None = None
        """When it was first seen to be paused (monotonic); None where it is not."""
        self._pause: Pause | None = None
        self._catalog = catalog
        self._host = host

    def look(self, now: float) -> None:
        """Read the catalog, and log a change. `now` is monotonic. CatalogUnavailableError."""
        with connect.reading(self._catalog) as conn:
            found = pause.of_host(conn, self._host)
        if found is not None and self._pause is None:
            log.warning(
                "featd_paused",
                "featd is paused: workers finish what they have and claim nothing more;"
                f" {found.ended_by(self._host)} goes on",
                since=found.since.isoformat(),
                by=found.by,
                reason=found.reason,
            )
            self.since = now
        elif found is None and self._pause is not None:
            log.info("featd_resumed", "featd is paused no more: workers go on")
            self.since = None
        self._pause = found

    @property
    def status(self) -> str:
        """For `systemctl status`; empty where it is not paused."""
        return "" if self._pause is None else str(self._pause)

    @property
    def way_out(self) -> str:
        """Why nothing is claimed, and what to do before another drain."""
        return "" if self._pause is None else f"featd is {self._pause}: {self._pause.ended_by(self._host)}"


def ends_drain(holds: tuple[Room | Paused, ...], now: float) -> str:
    """Why a drain waits no longer, and what to do; empty while it goes on."""
    lasting = (one for one in holds if one.since is not None and now - one.since >= DRAIN_SECONDS)
    return next((one.way_out for one in lasting), "")
