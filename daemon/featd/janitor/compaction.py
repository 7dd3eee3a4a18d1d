"""Compaction: small and half-dead shards are merged, so that a store that grows by single images stays a store of few
files.

The order makes it safe: the new shard is on stable storage, then one transaction moves the images to it and retires the
old shards; their files stay for grace_seconds, for readers that have opened them. A death at any moment leaves the old
shards, or both, or the new one, each time with a catalog that names what is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import compact, connect, leases, pairing
from featd.catalog.compact import GoneImage, OldShard
from featd.config import StoreConfig
from featd.crash_points import CrashPoint, crash_point
from featd.errors import CatalogUnavailableError, LeaseLostError
from featd.janitor.choose import HALF, choose, plan
from featd.shards.store import StoreKey, free_bytes
from featd.states import Lease

if TYPE_CHECKING:
    from featd.janitor.merge import Merger

log = logs.get("janitor")

PAGE = 1000
MANY = 2**31
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


@dataclass(frozen=True, slots=True)
class Preview:
    """What compaction would do: merge `merged` shards of `bytes` into `made` ones, remove the files of `removed` shards
    that were merged earlier, and forget the vectors of `forgotten` images that are gone for long."""

    merged: int
    made: int
    bytes: int
    removed: int
    forgotten: int


class Compaction:
    """Compacts one store. It works under a lease of its own, like a worker, and may be stopped at any step."""

    def __init__(
        self, catalog: sa.Engine, store: StoreConfig, host: str, lease_seconds: float, *, eager: bool = False
    ) -> None:
        """eager: merge what can be merged, without waiting for more."""
        self._catalog = catalog
        self._store = store
        self._host = host
        self._lease_seconds = lease_seconds
        self._eager = eager
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
        if not (chosen := self._choose()):
            return
        if not self.has_room():
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
                chosen = self._choose()
        except LeaseLostError:
            log.warning("compaction_lease_lost", "the lease of compaction has ended; it begins anew later")
        finally:
            hold.end()

    # What to merge

    def preview(self) -> Preview:
        """What `work` would do now, if nothing else happened meanwhile. CatalogUnavailableError."""
        merges = list(plan(self._candidates(), self._store, eager=self._eager))
        there = [shard for chosen in merges for shard in chosen if shard.id > 0]
        again = sum(shard.id < 0 for chosen in merges for shard in chosen)
        made = sum(any(shard.live_rows for shard in chosen) for chosen in merges)
        with connect.reading(self._catalog) as conn:
            removed = compact.removable(conn, self._store.grace_seconds, MANY)
        forgotten = sum(one.for_long for page in self._gone() for one in page)
        size = sum(shard.bytes for shard in there)
        return Preview(len(there), made - again, size, len(removed), forgotten)

    def to_merge(self) -> int:
        """About how many shards `work` would merge, with those that are merged again."""
        return sum(map(len, plan(self._candidates(), self._store, eager=self._eager)))

    def _choose(self) -> list[OldShard]:
        return choose(self._candidates(), self._store, eager=self._eager)

    def _candidates(self) -> Iterator[OldShard]:
        rows, size = (int(most * HALF) + 1 for most in (self._store.shard_rows, self._store.shard_bytes))
        pages = connect.walk(self._catalog, compact.small_shards, lambda shard: shard.id, 0, PAGE, rows, size)
        for page in pages:
            yield from (shard for shard in page if shard.id not in self._left)

    def _leave_alone(self, ids: Sequence[int], why: str) -> None:
        self._left.update(ids)
        log.warning("shards_not_compacted", f"left {len(ids)} shards as they are: {why}")

    def has_room(self) -> bool:
        """Shards are merged only where the disk has min_free. StoreUnavailableError."""
        return free_bytes(self._store.path) >= self._store.min_free

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
        for page in self._gone():
            if ids := [one.id for one in page if one.for_long]:
                self.forgotten += connect.transact(self._catalog, compact.forget_vectors, ids, days)
            yield

    def _gone(self) -> Iterator[Sequence[GoneImage]]:
        """All images that are gone and have a vector, page by page."""
        days = self._store.keep_gone_days
        return connect.walk(
            self._catalog, compact.gone_images, lambda one: (one.content, one.id), ("", 0), days, PAGE
        )
