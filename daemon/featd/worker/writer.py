"""Writing: the thread of a worker that fills shards, seals them and settles their rows.

The order makes it safe: first the shard is on stable storage, then its rows become done. After an attempted COMMIT
the sealed file is never removed here, only by the janitor, when the catalog proves that it is unknown.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, leases, live, settle
from featd.catalog.connect import CommitUnknownError
from featd.catalog.settle import Identity, Lost, Made, Settlement
from featd.config import StoreConfig
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.wire import Decoded, Hashed
from featd.errors import CatalogUnavailableError, StoreUnavailableError
from featd.shards.layout import ShardName
from featd.shards.store import OtherStoreError, StoreKey, check_store, unknown_folder
from featd.shards.verify import Fault, Verified
from featd.shards.write import ShardWriter
from featd.states import (
    OUTCOMES,
    ClaimedImage,
    Failure,
    Kind,
    Lease,
    Outcome,
    RetryPolicy,
    SealedShard,
    State,
    Unchanged,
)
from featd.worker.claims import Held
from featd.worker.thread import WorkerThread

log = logs.get("worker")

QUEUED_BATCHES = 8
"""Batches in the queue before the net has to wait for the writer."""
OUTCOME_SECONDS = 1.0
"""How long a failure or an unchanged image waits for a shard to be settled together with."""
RETRY_SECONDS = 1.0
TOLD_FAILURES = 20
"""Failures in a minute that are told one by one."""
ON_TIME = 0.9
"""Part of shard_seconds; the rest is for the wait of an arrival before it is claimed."""


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Vectors from the net, or copied from a shard: row i of each blob's (n, d) is of the file `files[i]`."""

    files: Sequence[Decoded | Hashed]
    vectors: dict[str, npt.NDArray[np.float32]]


class Flush:
    """No more images for now: seal the open shard once it has been open for idle_seconds."""


class Stop:
    """Seal, settle and end."""


Item = VectorBatch | Failure | Unchanged | Flush | Stop


@dataclass(frozen=True, slots=True)
class ShardKind:
    """What all shards of this worker have in common."""

    blobs: dict[str, int]
    engine: str
    host: str
    key: StoreKey
    """It stays the store's while this worker's lease is live: no start changes the nonce then."""


class Writer(WorkerThread):
    """Takes items from the pipeline. `failure`: the error that ended the thread; `verified`: the shards that this
    worker has compared with their checksums; `fruitful`: whether it has recorded vectors."""

    def __init__(
        self,
        catalog: sa.Engine,
        lease: Lease,
        store: StoreConfig,
        kind: ShardKind,
        identity: Identity,
        policy: RetryPolicy,
        held: Held,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("writer")
        self._catalog = catalog
        self._lease = lease
        self._store = store
        self._kind = kind
        self._identity = identity
        self._policy = policy
        self._held = held
        self._beat = beat
        self.verified = Verified()
        self.fruitful = False
        self._told_faulty: set[int] = set()
        self._settles = 0
        self._items: queue.Queue[Item] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._shard: ShardWriter | None = None
        self._opened_at = 0.0
        self._seal_at = float("inf")
        self._sealing_seconds = 0.0
        self._serial = 0
        self._abandoned = threading.Event()
        self._made: list[Made] = []
        self._copied = 0
        self._unchanged: list[Unchanged] = []
        self._failures: list[Failure] = []
        self._settle_at = float("inf")
        self._failed: Counter[Kind] = Counter()
        self._tell_at = clock.monotonic() + 60.0

    # The pipeline's side

    def put(self, item: Item) -> None:
        """Hand over an item; waits while the queue is full. Raises the error that ended the thread, if it has ended."""
        while True:
            if self.failure is not None:
                raise self.failure
            if not self.is_alive():
                raise StoreUnavailableError("the writer has ended")
            try:
                self._items.put(item, timeout=0.5)
                return
            except queue.Full:
                self._beat()  # waiting for a slow disk or database is not a hang

    def finish(self) -> None:
        """Seal and settle everything handed over, and end the thread. Raises the error that ended it early."""
        with contextlib.suppress(Exception):
            if self.is_alive():
                self.put(Stop())
        while self.is_alive():
            self._beat()
            self.join(0.5)
        if self.failure is not None:
            raise self.failure

    def abandon(self) -> None:
        """End the thread without sealing: nothing more is settled."""
        self._abandoned.set()
        self.join()

    # The thread's side

    def run(self) -> None:
        try:
            try:
                while not self._abandoned.is_set() and self.step():
                    pass
            finally:
                if self._shard is not None:
                    self._shard.discard()
        except Exception as error:
            self.failure = error

    def step(self) -> bool:
        """Take one item, or wait; then seal and settle what is due. False when told to stop."""
        self.turn()
        item: Item | None = None
        now = clock.monotonic()
        with contextlib.suppress(queue.Empty):
            item = self._items.get(timeout=max(0.0, min(1.0, self._seal_at - now, self._settle_at - now)))
        match item:
            case VectorBatch():
                self._append(item)
            case Failure():
                self._failures.append(item)
            case Unchanged():
                self._unchanged.append(item)
        now = clock.monotonic()
        waiting = bool(self._failures or self._unchanged)
        if waiting:
            self._settle_at = min(self._settle_at, now + OUTCOME_SECONDS)
        last = isinstance(item, Stop)
        if isinstance(item, Flush):
            self._seal_at = min(self._seal_at, self._opened_at + self._store.idle_seconds)
        if self._shard is not None and (last or now >= self._seal_at):
            self._seal()
        elif waiting and (
            last or now >= self._settle_at or (isinstance(item, Flush) and self._shard is None)
        ):
            self._settle(None)
        self._tell((), end=isinstance(item, Stop))
        return not isinstance(item, Stop)

    def _append(self, batch: VectorBatch) -> None:
        """Append to the open shard. A batch that goes beyond shard_rows continues in the next shard."""
        at = 0
        while at < len(batch.files):
            shard = self._shard or self._open([one.image for one in batch.files[at:]])
            some = batch.files[at : at + self._store.shard_rows - shard.rows]
            images, contents = [one.image for one in some], [one.content for one in some]
            vectors = {blob: values[at : at + len(some)] for blob, values in batch.vectors.items()}
            with _storing(self._store.path):
                first = shard.append(images, contents, vectors)
            crash_point(CrashPoint.ROWS_WRITTEN)
            self._made += map(Made, images, range(first, first + len(some)), contents)
            self._copied += sum(isinstance(one, Hashed) for one in some)
            at += len(some)
            if shard.rows >= self._store.shard_rows or shard.bytes >= self._store.shard_bytes:
                self._seal()

    def _open(self, images: Sequence[ClaimedImage]) -> ShardWriter:
        """Open a shard. It is sealed early enough for its first images to be done `shard_seconds` after they were
        claimed, but stays open for at least half that time, or a slow net would make shards of one batch."""
        now = clock.monotonic()
        spent = now - self._held.oldest(image.id for image in images) + self._sealing_seconds
        seconds = self._store.shard_seconds
        self._opened_at = now
        self._seal_at = now + max(seconds / 2, seconds * ON_TIME - spent)
        name = ShardName(clock.utcnow(), self._lease.id, self._lease.token, self._serial)
        self._serial += 1
        # An unmounted store leaves an empty folder, which must not be written to.
        self._check_store()
        with _storing(self._store.path):
            self._shard = ShardWriter(
                self._store.path,
                name,
                self._kind.blobs,
                dtype=self._store.dtype,
                compression=self._store.compression,
                attributes={
                    "instance": self._kind.key.instance,
                    "fingerprint": self._identity.fingerprint,
                    "spec": json.dumps(self._identity.spec, sort_keys=True),
                    "engine": self._kind.engine,
                },
            )
        crash_point(CrashPoint.SHARD_OPENED)
        return self._shard

    def _seal(self) -> None:
        assert self._shard is not None
        began = clock.monotonic()
        with _storing(self._store.path):
            sealed = self._shard.seal()
        self._shard, self._seal_at = None, float("inf")
        crash_point(CrashPoint.SHARD_SEALED)
        self._check_store()
        self._settle(sealed)
        self._sealing_seconds = clock.monotonic() - began

    def _check_store(self) -> None:
        try:
            check_store(self._store.path, self._kind.key)
        except OtherStoreError:
            # After a long stop it is the lease that is over: then a start may have changed the nonce.
            connect.transact(self._catalog, leases.hold, self._lease)
            raise

    def _settle(self, shard: SealedShard | None) -> None:
        made: list[Made] = []
        if shard is not None:
            made, self._made = self._made, []
        settlement = Settlement(shard, made, self._unchanged, self._failures)
        self._unchanged, self._failures, self._settle_at = [], [], float("inf")
        settled = self._commit(settlement)
        self.fruitful |= shard is not None
        for outcomes in (settlement.made, settlement.unchanged, settlement.failures):
            self._held.drop(outcome.image.id for outcome in outcomes)
        fields = {state.value: count for state, count in settled.items() if count > 0}
        if shard is not None:
            fields |= {"copied": self._copied} if self._copied else {}
            self._copied = 0
            log.info("shard_sealed", "shard sealed and its images recorded", shard=shard.name, **fields)
        elif fields:
            log.info("images_recorded", "images recorded that need no shard", **fields)
        self._tell(settlement.failures)

    def _tell(self, failures: Sequence[Failure], *, end: bool = False) -> None:
        """A warning for each of the first failures in a minute; then, once the minute is over, how many there were."""
        for failure in failures:
            if not failure.counted or OUTCOMES[failure.kind] in (Outcome.REQUEUE, Outcome.GONE):
                continue
            self._failed[failure.kind] += 1
            if self._failed.total() <= TOLD_FAILURES:
                path = f"{failure.image.root}/{failure.image.path}"
                log.warning("image_failed", failure.message, image=path, kind=failure.kind)
        now = clock.monotonic()
        if now < self._tell_at and not end:
            return
        if (total := self._failed.total()) > TOLD_FAILURES:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self._failed.most_common())
            log.warning("images_failed", f"{total:,} images failed within a minute", kinds=kinds)
        self._failed.clear()
        self._tell_at = now + 60.0

    def _commit(self, settlement: Settlement) -> dict[State, int]:
        """Settle, retrying for as long as the catalog is out of reach. LeaseLostError ends it."""
        unknown = False
        while True:
            self.turn()
            try:
                settled: dict[State, int] = {}
                # A COMMIT whose reply was lost may have succeeded: check before trying again.
                if not (unknown and self._was_committed(settlement)):
                    settled = connect.transact(
                        self._catalog,
                        settle.settle,
                        self._lease,
                        self._without_lost(settlement),
                        self._identity,
                        self._policy,
                    )
                crash_point(CrashPoint.SETTLED)
                self._settles += 1
                return settled
            except CommitUnknownError as error:
                unknown = True
                log.warning(
                    "commit_unknown",
                    "connection lost during COMMIT; checking whether it succeeded",
                    error=str(error),
                )
            except CatalogUnavailableError as error:
                log.warning(
                    "settle_failed",
                    "cannot settle; the shard is safe on disk, trying again",
                    error=str(error),
                )
            clock.sleep(RETRY_SECONDS)

    def _without_lost(self, settlement: Settlement) -> Settlement:
        """The vector of an unchanged file counts only where its shard is there, and is as it was sealed."""
        if not settlement.unchanged:
            return settlement
        with connect.reading(self._catalog) as conn:
            named = live.named_shards(conn, [one.image.id for one in settlement.unchanged])
        faulty: set[int] = set()
        for shard in set(named.values()):
            self.turn()  # a store of many small shards may take long
            path = self._store.path / shard.path
            if (fault := self.verified.fault(path, shard.checksum)) is None:
                continue
            self._check_store()  # else it may only be unmounted
            aside = fault is Fault.MISSING and (unknown_folder(self._store.path) / path.name).exists()
            if fault.lost and not aside:
                faulty.add(shard.id)
            if shard.id not in self._told_faulty:
                self._told_faulty.add(shard.id)
                what = (
                    "the vectors of images that are read again are made anew (`featd verify --repair` has all"
                    " made)"
                    if shard.id in faulty
                    else "its images keep their vectors; check the disk and its owner"
                )
                log.error("shard_faulty", f"a shard is {fault}; {what}", shard=path)
        shards = {image_id: shard.id for image_id, shard in named.items() if shard.id in faulty}
        lost = [
            Lost(one.image, shards[one.image.id]) for one in settlement.unchanged if one.image.id in shards
        ]
        if not lost:
            return settlement
        ids = {one.image.id for one in lost}
        kept = [one for one in settlement.unchanged if one.image.id not in ids]
        return replace(settlement, unchanged=kept, lost=lost)

    def _was_committed(self, settlement: Settlement) -> bool:
        """Whether a settlement was committed: its shard is recorded, or the lease has settled once more."""
        shard = settlement.shard
        if shard is not None:
            return connect.transact(self._catalog, settle.find_shard, self._lease, shard.name)
        return connect.transact(self._catalog, settle.count_settles, self._lease) > self._settles


@contextlib.contextmanager
def _storing(store: Path) -> Iterator[None]:
    """Turn an OSError into a StoreUnavailableError."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"store {store}: {error.strerror or error}: nothing is lost; the images in hand are processed again when"
            " the store can be written"
        ) from error
