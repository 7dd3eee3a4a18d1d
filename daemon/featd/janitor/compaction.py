"""Compaction: small and half-dead shards are merged, so that a store that grows by single images stays a store of few
files.

The order makes it safe: the new shard is on stable storage, then one transaction moves the images to it and retires the
old shards; their files stay for grace_seconds, for readers that have opened them. A death at any moment leaves the old
shards, or both, or the new one, each time with a catalog that names what is there.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import compact, connect, leases, pairing
from featd.catalog.compact import OldShard
from featd.config import StoreConfig
from featd.crash_points import CrashPoint, crash_point
from featd.errors import CatalogUnavailableError, LeaseLostError
from featd.shards.store import StoreKey, free_bytes
from featd.states import Lease

if TYPE_CHECKING:
    from featd.janitor.merge import Merger

log = logs.get("janitor")

FAN_IN = 8
"""So many shards of a level make one of the next, so that each vector is copied only a few times."""
FULL = 0.5
"""Shards that have more than this part of shard_rows or shard_bytes are left alone."""
MOST_FILES = 512
DEAD_BYTES = 1024 * 1024
"""A shard of which half or more is dead is rewritten by itself where that frees so much."""
PAGE = 1000
FORGET_EVERY_SECONDS = 86_400.0


class Hold:
    """The lease of compaction, and the key that the store has as long as the lease lives."""

    def __init__(self, catalog: sa.Engine, store: StoreConfig, host: str, lease_seconds: float) -> None:
        """Opens the lease. OtherStoreError; StoreUnavailableError."""
        self._catalog = catalog
        self._seconds = lease_seconds
        self.lease: Lease = connect.transact(
            catalog,
            leases.open_lease,
            host=host,
            pid=os.getpid(),
            device=leases.COMPACTION,
            engine="none",
            lease_seconds=lease_seconds,
        )
        self._renew_at = clock.monotonic() + lease_seconds / 3
        try:
            self.key: StoreKey = pairing.check_under_lease(catalog, store.path)
        except BaseException:
            self.end()
            raise

    def renew(self) -> None:
        """To be called at least once a second. LeaseLostError."""
        if clock.monotonic() > self._renew_at:
            connect.transact(self._catalog, leases.renew, self.lease, self._seconds, {})
            self._renew_at = clock.monotonic() + self._seconds / 3

    def end(self) -> None:
        with contextlib.suppress(CatalogUnavailableError):  # then it expires
            connect.transact(self._catalog, leases.forget_lease, self.lease)


class Compaction:
    """Compacts one store. It works under a lease of its own, like a worker, and may be stopped at any step."""

    def __init__(self, catalog: sa.Engine, store: StoreConfig, host: str, lease_seconds: float) -> None:
        self._catalog = catalog
        self._store = store
        self._host = host
        self._lease_seconds = lease_seconds
        self._left: set[int] = set()
        """Shards that could not be merged or removed: this process leaves them alone from then on."""
        self._merger: Merger | None = None
        self._forget_at = 0.0
        self.removed = 0
        self.forgotten = 0
        """Vectors of images that are gone for long."""

    @property
    def merged(self) -> int:
        """How many shards were merged into others."""
        return self._merger.merged if self._merger else 0

    @property
    def made(self) -> int:
        """How many shards they became."""
        return self._merger.made if self._merger else 0

    def work(self) -> Generator[None]:
        """All that is to be done now, in steps of at most about a second. To be closed where it is not finished.
        OSError; CatalogUnavailableError; StoreUnavailableError; OtherStoreError."""
        yield from self._remove_retired()
        yield from self._forget_gone()
        if not (chosen := self.choose()):
            return
        if free_bytes(self._store.path) < self._store.min_free:
            log.warning(
                "compaction_waits_for_room",
                "shards are not merged while the store's disk has less than min_free",
                min_free=self._store.min_free,
            )
            return
        from featd.janitor.merge import Merger  # here: a janitor that has nothing to merge loads no HDF5

        self._merger = self._merger or Merger(self._catalog, self._store, self._leave_alone)
        hold = Hold(self._catalog, self._store, self._host, self._lease_seconds)
        try:
            while chosen:
                yield
                hold.renew()
                yield from self._merger.merge(chosen, hold)
                chosen = self.choose()
        except LeaseLostError:
            log.warning("compaction_lease_lost", "the lease of compaction has ended; it begins anew later")
        finally:
            hold.end()

    # What to merge

    def choose(self) -> list[OldShard]:
        """The shards to merge next; empty where nothing is worth it."""
        levels: dict[tuple[str, int], list[OldShard]] = {}
        for shard in self._candidates():
            if self._is_worth_it_alone(shard):
                return [shard]
            level = levels.setdefault((shard.engine, self._level(shard)), [])
            level.append(shard)
            if len(level) == MOST_FILES:
                break
        # The smallest first: they are the most, and what becomes of them may be merged again.
        for _, level in sorted(levels.items(), key=lambda item: -item[0][1]):
            if len(level) >= FAN_IN and len(some := self._that_fit(level)) > 1:
                return some
        return []

    def preview(self) -> tuple[int, int]:
        """How many shards `work` would merge at first, and their bytes. What becomes of them may be merged again."""
        levels: dict[tuple[str, int], list[int]] = {}
        alone: list[int] = []
        for shard in self._candidates():
            level = levels.setdefault((shard.engine, self._level(shard)), [])
            (alone if self._is_worth_it_alone(shard) else level).append(shard.bytes)
        sizes = [*alone, *(size for level in levels.values() if len(level) >= FAN_IN for size in level)]
        return len(sizes), sum(sizes)

    def _candidates(self) -> Iterator[OldShard]:
        rows, size = int(self._store.shard_rows * FULL), int(self._store.shard_bytes * FULL)
        pages = connect.walk(self._catalog, compact.small_shards, lambda shard: shard.id, 0, PAGE, rows, size)
        for page in pages:
            yield from (shard for shard in page if shard.id not in self._left)

    def _fill(self, shard: OldShard) -> float:
        """How full a shard of what is left of this one would be."""
        left = shard.bytes * shard.live_rows / max(shard.rows, 1)
        return max(shard.live_rows / self._store.shard_rows, left / self._store.shard_bytes)

    def _level(self, shard: OldShard) -> int:
        return int(-math.log(max(self._fill(shard), 1e-9), FAN_IN))

    def _is_worth_it_alone(self, shard: OldShard) -> bool:
        dead = shard.rows - shard.live_rows
        return shard.live_rows == 0 or (
            dead * 2 >= shard.rows and shard.bytes * dead >= DEAD_BYTES * shard.rows
        )

    def _that_fit(self, level: Sequence[OldShard]) -> list[OldShard]:
        some: list[OldShard] = []
        fill = 0.0
        for shard in level:
            fill += self._fill(shard)
            if fill > 1.0:
                break
            some.append(shard)
        return some

    def _leave_alone(self, ids: Sequence[int], why: str) -> None:
        self._left.update(ids)
        log.warning("shards_not_compacted", f"left {len(ids)} shards as they are: {why}")

    # What is left behind

    def _remove_retired(self) -> Iterator[None]:
        """Remove the files of retired shards, then their rows."""
        while True:
            with connect.reading(self._catalog) as conn:
                page = compact.removable(conn, self._store.grace_seconds, PAGE)
            page = [(shard_id, path) for shard_id, path in page if shard_id not in self._left]
            if not page:
                return
            removed = []
            for shard_id, path in page:
                try:
                    (self._store.path / path).unlink(missing_ok=True)
                except OSError as error:
                    self._leave_alone([shard_id], f"{path} cannot be removed: {error.strerror}")
                else:
                    removed.append(shard_id)
                    crash_point(CrashPoint.COMPACTION_UNLINKED)
            connect.transact(self._catalog, compact.forget_shards, removed)
            self.removed += len(removed)
            yield

    def _forget_gone(self) -> Iterator[None]:
        """Once a day: all images that are gone are looked through."""
        if clock.monotonic() < self._forget_at:
            return
        self._forget_at = clock.monotonic() + FORGET_EVERY_SECONDS
        days = self._store.keep_gone_days
        pages = connect.walk(
            self._catalog, compact.gone_images, lambda one: (one.content, one.id), ("", 0), days, PAGE
        )
        for page in pages:
            if ids := [one.id for one in page if one.for_long]:
                self.forgotten += connect.transact(self._catalog, compact.forget_vectors, ids, days)
            yield
