"""Compaction: small and half-dead shards are merged, so that a store that grows by single images stays a store of few
files.

The order makes it safe: the new shard is on stable storage, then one transaction moves the images to it and retires the
old shards; their files stay for grace_seconds, for readers that have opened them. A death at any moment leaves the old
shards, or both, or the new one, each time with a catalog that names what is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import compact, connect, leases, settle
from featd.catalog.compact import Move, OldShard, SwapError
from featd.catalog.connect import CommitUnknownError
from featd.errors import CatalogUnavailableError, LeaseLostError
from featd.paths import to_catalog
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.shards.store import StoreKey, check_store
from featd.shards.verify import Verified
from featd.shards.write import ShardWriter
from featd.states import ClaimedImage, Lease, RetryPolicy, SealedShard

log = logs.get("janitor")

FAN_IN = 8
"""So many shards of a level make one of the next, so that each vector is copied only a few times."""
FULL = 0.5
"""Shards that have more than this part of shard_rows or shard_bytes are left alone."""
MOST_FILES = 512
MOST_BYTES_READ = 32 * 1024 * 1024
DEAD_BYTES = 1024 * 1024
"""A shard of which half or more is dead is rewritten at once where that frees so much."""
PAGE = 1000
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The store, and the keys of [store] that compaction goes by."""

    path: Path
    shard_rows: int
    shard_bytes: int
    compression: str
    grace_seconds: float
    keep_gone_days: float


@dataclass(slots=True)
class Compacted:
    """What compaction has done so far."""

    merged: int = 0
    made: int = 0
    removed: int = 0
    forgotten: int = 0
    """Vectors of images that are gone for long."""


class Compaction:
    """Compacts one store. It works under a lease of its own, like a worker, and may be stopped at any step."""

    def __init__(self, catalog: sa.Engine, store: StorePlan, key: StoreKey, host: str, lease: float) -> None:
        """lease: how many seconds its lease lasts."""
        self._catalog = catalog
        self._store = store
        self._key = key
        self._host = host
        self._lease_seconds = lease
        self._verified = Verified()
        self._faulty: set[int] = set()
        """Shards that could not be merged: they are left alone by this process from then on."""
        self._lease: Lease | None = None
        self._renew_at = 0.0
        self._serial = 0
        self.done = Compacted()

    def work(self) -> Iterator[None]:
        """All that is to be done now, in steps of at most about a second. To be closed, where it is not finished."""
        try:
            yield from self._remove_retired()
            yield from self._forget_gone()
            while chosen := self.choose():
                yield
                yield from self._merge(chosen)
        except LeaseLostError:
            log.warning("compaction_lost_its_lease", "compaction took too long for its lease; it begins anew")
            self._lease = None
        finally:
            self._end_lease()

    # What to merge

    def choose(self) -> list[OldShard]:
        """The shards to merge next; empty where nothing is worth it."""
        levels: dict[tuple[str, int], list[OldShard]] = {}
        for shard in self.candidates():
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

    def candidates(self) -> Iterator[OldShard]:
        """The shards that are small or half dead."""
        after = 0
        while True:
            with connect.reading(self._catalog) as conn:
                page = compact.small_shards(
                    conn, after, PAGE, int(self._store.shard_rows * FULL), int(self._store.shard_bytes * FULL)
                )
            yield from (shard for shard in page if shard.id not in self._faulty)
            if len(page) < PAGE:
                return
            after = page[-1].id

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
        for shard in level[:MOST_FILES]:
            fill += self._fill(shard)
            if fill > 1.0:
                break
            some.append(shard)
        return some

    # Merging

    def _merge(self, chosen: Sequence[OldShard]) -> Iterator[None]:
        lease = self._leased()
        moves: list[Move] = []
        merged: list[OldShard] = []
        writer: ShardWriter | None = None
        try:
            for shard in chosen:
                try:
                    for writer in self._copy(shard, lease, writer, moves):
                        self._renew()
                        yield
                except (ShardError, FileNotFoundError) as error:
                    self._leave_alone([shard.id], str(error))
                    if writer is not None and any(move.shard_id == shard.id for move in moves):
                        return  # half of it is in the new shard: begin anew without it
                    continue
                merged.append(shard)
                self._renew()
                yield
            if not merged:
                return
            sealed = writer.seal() if writer is not None else None
            check_store(self._store.path, self._key)
            yield
            if self._swap(lease, sealed, moves, [shard.id for shard in merged]):
                self.done.merged += len(merged)
                self.done.made += sealed is not None
        finally:
            if writer is not None:
                writer.discard()

    def _copy(
        self, shard: OldShard, lease: Lease, writer: ShardWriter | None, moves: list[Move]
    ) -> Iterator[ShardWriter]:
        """Append the rows of `shard` that images name to the new shard, which is opened if need be."""
        if shard.live_rows == 0:
            return
        path = self._store.path / shard.path
        self._verified.check(path, shard.checksum)
        with ShardReader(path) as reader:
            ids, versions = reader.keys()
            with connect.reading(self._catalog) as conn:
                named = compact.rows_that_name(conn, shard.id, ids.tolist())
            rows = np.array([row for row, one in enumerate(ids.tolist()) if named.get(one) == row], np.int64)
            if not rows.size:
                return
            names, roots, contents = reader.names(), reader.roots(), reader.contents()
            some = max(1, MOST_BYTES_READ // reader.row_bytes)
            for at in range(0, rows.size, some):
                part = rows[at : at + some]
                vectors = {blob: reader.read(blob, part) for blob in reader.blobs}
                if writer is None:
                    writer = self._open(reader, lease)
                images = [
                    ClaimedImage(
                        int(ids[row]), to_catalog(roots[row]), to_catalog(names[row]), 0, 0, int(versions[row])
                    )
                    for row in part.tolist()
                ]
                first = writer.append(images, [contents[row] for row in part.tolist()], vectors)
                moves += [
                    Move(image.id, shard.id, row, new)
                    for new, (image, row) in enumerate(zip(images, part.tolist(), strict=True), start=first)
                ]
                yield writer

    def _open(self, like: ShardReader, lease: Lease) -> ShardWriter:
        check_store(self._store.path, self._key)
        name = ShardName(clock.utcnow(), lease.id, lease.token, self._serial)
        self._serial += 1
        attributes = {key: like.attributes[key] for key in ("instance", "fingerprint", "spec", "engine")}
        return ShardWriter(
            self._store.path,
            name,
            like.blobs,
            dtype=like.dtype,
            compression=self._store.compression,
            attributes=attributes,
        )

    def _swap(
        self, lease: Lease, sealed: SealedShard | None, moves: Sequence[Move], old: Sequence[int]
    ) -> bool:
        """Whether the new shard has replaced the old ones."""
        try:
            connect.transact(self._catalog, compact.swap, lease, sealed, moves, old)
        except SwapError as error:
            self._leave_alone(error.shard_ids, str(error))
        except CommitUnknownError:
            if sealed is None:
                return False  # the next look tells
            return self._was_committed(lease, sealed)
        else:
            return True
        if sealed is not None:
            (self._store.path / sealed.path).unlink()  # the transaction was rolled back, and the old shards are there
        return False

    def _was_committed(self, lease: Lease, sealed: SealedShard) -> bool:
        while True:
            clock.sleep(RETRY_SECONDS)
            try:
                return connect.transact(self._catalog, settle.find_shard, lease, sealed.name)
            except CatalogUnavailableError as error:
                log.warning(
                    "compaction_waits",
                    "connection lost during COMMIT; checking whether it succeeded",
                    error=str(error),
                )

    def _leave_alone(self, ids: Sequence[int], why: str) -> None:
        self._faulty.update(ids)
        log.warning("shard_not_compacted", "left a shard as it is; see `featd verify`", why=why)

    # What is left behind

    def _remove_retired(self) -> Iterator[None]:
        while True:
            with connect.reading(self._catalog) as conn:
                page = compact.removable(conn, self._store.grace_seconds, PAGE)
            page = [(shard_id, path) for shard_id, path in page if shard_id not in self._faulty]
            if not page:
                return
            removed = []
            for shard_id, path in page:
                try:
                    (self._store.path / path).unlink(missing_ok=True)
                except OSError as error:
                    self._leave_alone([shard_id], f"{path}: {error.strerror}")
                else:
                    removed.append(shard_id)
            connect.transact(self._catalog, compact.forget_shards, removed)
            self.done.removed += len(removed)
            yield
            if len(page) < PAGE:
                return

    def _forget_gone(self) -> Iterator[None]:
        while count := connect.transact(
            self._catalog, compact.forget_gone_vectors, self._store.keep_gone_days, PAGE
        ):
            self.done.forgotten += count
            yield

    # The lease

    def _leased(self) -> Lease:
        if self._lease is None:
            self._lease = connect.transact(
                self._catalog,
                lambda conn: leases.open_lease(
                    conn,
                    host=self._host,
                    pid=leases.own_pid(),
                    device=leases.COMPACTION,
                    engine="none",
                    lease_seconds=self._lease_seconds,
                ),
            )
            self._renew_at = clock.monotonic() + self._lease_seconds / 3
        return self._lease

    def _renew(self) -> None:
        if self._lease is not None and clock.monotonic() > self._renew_at:
            connect.transact(self._catalog, leases.renew, self._lease, self._lease_seconds, {})
            self._renew_at = clock.monotonic() + self._lease_seconds / 3

    def _end_lease(self) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            connect.transact(self._catalog, leases.end_lease, lease, "compaction ended", RetryPolicy())
