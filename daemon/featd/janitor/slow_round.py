"""The slow round: every shard that images name is compared with its checksum once in verify_days, in order of id.

The position is in the catalog, so that a restart, or another host that takes over, goes on from there. What is found is
told in the log and by `featd status`; nothing is repaired here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, dump, pairing, stats, values, verify
from featd.catalog.verify import ShardRow
from featd.errors import ConfigError, StoreUnavailableError
from featd.shards.layout import ShardError
from featd.shards.store import unknown_folder
from featd.shards.verify import Fault, Verified, fault_of

log = logs.get("janitor")

DAY_SECONDS = 86_400
PAGE_SHARDS = 100
MOST_TOLD = 100
AGAIN_SECONDS = 3600.0
"""How often faulty shards are looked at again: they may have been brought back."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a round is: when it began, the last shard that was compared, and the last that it goes to."""

    begun_at: str
    after: int
    newest: int


class SlowRound:
    """A look compares what is due by now, a step at a time."""

    def __init__(self, catalog: sa.Engine, store: Path, days: float) -> None:
        self._catalog = catalog
        self._store = store
        self._days = days
        self._again_at = 0.0

    def look(self) -> Generator[None]:
        """One look, in steps of some milliseconds."""
        if clock.monotonic() >= self._again_at:
            self._again_at = clock.monotonic() + AGAIN_SECONDS
            yield from self._look_again()
        with contextlib.suppress(StoreUnavailableError, ConfigError):  # it goes on when the store is back
            yield from self._compare_due()

    def _compare_due(self) -> Iterator[None]:
        while self._days and (place := self._place()) is not None:
            with connect.reading(self._catalog) as conn:
                page = verify.shards_after(conn, place.after, PAGE_SHARDS)
            page = [shard for shard in page if shard.id <= place.newest]
            if not page:
                connect.transact(self._catalog, _save, replace(place, after=place.newest))
                log.info("store_compared", "compared every shard with its checksum", shards_to=place.newest)
                return
            for shard in page:
                if (shard.id - 1) / place.newest > self._elapsed(place):
                    return
                if shard.live_rows > 0 and not shard.retired:
                    yield from self._compare(shard)
                connect.transact(self._catalog, _save, replace(place, after=shard.id))
                yield

    def _place(self) -> Place | None:
        """Where the round is; None where there is nothing to do before the next begins."""
        with connect.reading(self._catalog) as conn:
            stored = values.get_value(conn, stats.ROUND)
            newest = pairing.newest_shard(conn)
        place = None if stored is None else Place(**stored)
        # A restored catalog may have fewer shards than the position says.
        if (
            place is None
            or (place.after >= place.newest and self._elapsed(place) >= 1)
            or place.newest > newest
        ):
            place = Place(clock.utcnow().isoformat(), 0, newest)
        return None if place.after >= place.newest else place

    def _elapsed(self, place: Place) -> float:
        """The part of the round's time that is over."""
        since = clock.utcnow() - datetime.fromisoformat(place.begun_at)
        return since.total_seconds() / (self._days * DAY_SECONDS)

    def _compare(self, shard: ShardRow) -> Iterator[None]:
        fault = yield from self._fault(shard.path, shard.checksum)
        if fault is not None and self._counts(shard.path, fault):
            self._tell({shard.path: fault.value})
            what = (
                "bring it back from a backup, or have its vectors made again with `featd verify --repair`"
                if fault.lost
                else "check the disk and its owner, then run `featd verify`"
            )
            log.error("verify_fault", f"a shard is {fault}: {what}", shard=self._store / shard.path)

    def _fault(self, path: str, recorded: str) -> Any:
        """A generator that returns the Fault, or None."""
        try:
            for _ in Verified().checking(self._store / path, recorded):
                yield
        except (ShardError, OSError) as error:
            return fault_of(error)
        return None

    def _counts(self, path: str, fault: Fault) -> bool:
        """Whether the fault is one: images still name the shard. StoreUnavailableError or OtherStoreError where it is
        the store that is missing."""
        pairing.check(self._catalog, self._store, writable=False)
        if fault is Fault.MISSING and (unknown_folder(self._store) / Path(path).name).exists():
            return False  # it comes back at the next look for leftovers
        with connect.reading(self._catalog) as conn:
            return bool(dump.still_named(conn, [path]))

    def _look_again(self) -> Iterator[None]:
        """Tell no more of shards that are whole again, or that no image names."""
        with connect.reading(self._catalog) as conn:
            told = stats.faulty_shards(conn)
            recorded = verify.checksums(conn, list(told))
        for path in told:
            fault = None
            if path in recorded:
                fault = yield from self._fault(path, recorded[path])
            if fault is None:
                self._tell({path: None})

    def _tell(self, news: dict[str, str | None]) -> None:
        connect.transact(self._catalog, stats.tell_faulty, news, MOST_TOLD)


def _save(conn: sa.Connection, place: Place) -> None:
    values.set_value(conn, stats.ROUND, asdict(place))
