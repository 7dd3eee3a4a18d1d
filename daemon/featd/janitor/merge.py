"""Merging shards: the rows that images name go into a new shard, and then the images name that one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from featd import clock
from featd.catalog import compact, connect
from featd.catalog.compact import Move, OldShard, SwapError
from featd.catalog.connect import CommitUnknownError
from featd.config import StoreConfig
from featd.crash_points import CrashPoint, crash_point
from featd.janitor.compaction import Hold
from featd.paths import to_catalog
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.shards.store import check_store
from featd.shards.verify import Verified
from featd.shards.write import ShardWriter
from featd.states import ClaimedImage, Lease, SealedShard

BLOCK_BYTES = 32 * 1024 * 1024
"""Vectors that are read at once."""


@dataclass(slots=True)
class _Merge:
    """A merge under way: the rows that were copied into the new shard, and the shards that they are from."""

    shard: ShardWriter | None
    moves: list[Move]
    old: list[int]


class Merger:
    """`merged` shards have become `made` ones."""

    def __init__(
        self, catalog: sa.Engine, store: StoreConfig, leave_alone: Callable[[Sequence[int], str], None]
    ) -> None:
        """leave_alone: is told of shards that cannot be merged, and why."""
        self._catalog = catalog
        self._store = store
        self._leave_alone = leave_alone
        self._verified = Verified()
        self._serial = 0
        self.merged = 0
        self.made = 0

    def merge(self, chosen: Sequence[OldShard], hold: Hold) -> Iterator[None]:
        """Merge `chosen` into one shard. LeaseLostError."""
        merge = _Merge(None, [], [])
        try:
            for shard in chosen:
                copied = len(merge.moves)
                try:
                    yield from self._copy(shard, hold, merge)
                except (ShardError, FileNotFoundError) as error:
                    self._leave_alone([shard.id], str(error))
                    if len(merge.moves) > copied:
                        return  # a part of it is in the new shard: begin anew without it
                else:
                    merge.old.append(shard.id)
            if not merge.old:
                return
            crash_point(CrashPoint.COMPACTION_COPIED)
            sealed = merge.shard.seal() if merge.shard is not None else None
            crash_point(CrashPoint.COMPACTION_SEALED)
            check_store(self._store.path, hold.key)
            yield
            if self._swap(hold.lease, sealed, merge):
                crash_point(CrashPoint.COMPACTION_SWAPPED)
                self.merged += len(merge.old)
                self.made += sealed is not None
        finally:
            if merge.shard is not None:
                merge.shard.discard()

    def _copy(self, shard: OldShard, hold: Hold, merge: _Merge) -> Iterator[None]:
        """Append the rows of `shard` that images name to the new shard, which is opened if need be."""
        if shard.live_rows == 0:
            return
        path = self._store.path / shard.path
        self._verified.check(path, shard.checksum)
        with ShardReader(path) as reader:
            ids, versions = reader.keys()
            with connect.reading(self._catalog) as conn:
                named = compact.rows_that_name(conn, shard.id, ids.tolist())
            live = np.array([row for row, one in enumerate(ids.tolist()) if named.get(one) == row], np.int64)
            names, roots, contents = reader.names(), reader.roots(), reader.contents()
            some = max(1, BLOCK_BYTES // reader.row_bytes)
            for at in range(0, live.size, some):
                rows = live[at : at + some]
                merge.shard = merge.shard or self._open(reader, hold)
                images = [
                    ClaimedImage(
                        int(ids[row]),
                        os.fsdecode(roots[row]),
                        to_catalog(names[row]),
                        0,
                        0,
                        int(versions[row]),
                    )
                    for row in rows.tolist()
                ]
                vectors = {blob: reader.read(blob, rows) for blob in reader.blobs}
                first = merge.shard.append(images, [contents[row] for row in rows.tolist()], vectors)
                merge.moves += [
                    Move(image.id, shard.id, row, new)
                    for new, (image, row) in enumerate(zip(images, rows.tolist(), strict=True), start=first)
                ]
                hold.renew()
                yield

    def _open(self, like: ShardReader, hold: Hold) -> ShardWriter:
        check_store(self._store.path, hold.key)
        name = ShardName(clock.utcnow(), hold.lease.id, hold.lease.token, self._serial)
        self._serial += 1
        attributes = {name: like.attributes[name] for name in ("instance", "fingerprint", "spec", "engine")}
        return ShardWriter(
            self._store.path,
            name,
            like.blobs,
            dtype=like.dtype(next(iter(like.blobs))),
            compression=self._store.compression,
            attributes=attributes,
        )

    def _swap(self, lease: Lease, sealed: SealedShard | None, merge: _Merge) -> bool:
        """Whether the new shard has replaced the old ones."""
        try:
            connect.transact(self._catalog, compact.swap, lease, sealed, merge.moves, merge.old)
            return True
        except SwapError as error:
            self._leave_alone(error.shard_ids, str(error))
        except CommitUnknownError:
            return False  # the catalog names the old shards or the new one; what it does not name is put aside later
        if sealed is not None:  # the old shards have everything, and no row can name this one any more
            (self._store.path / sealed.path).unlink()
        return False
