"""Adopting: the images of placed rows are enqueued, claimed, read and hashed; their vectors go to a worker's writer.

All of it is done under a lease, as a worker does it, so that a death at any moment leaves what a worker's death leaves,
and the same command goes on: what is done is there already.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from featd.adopt.chosen import Chosen
from featd.adopt.outcome import Outcome, Why
from featd.adopt.places import Place, Places
from featd.adopt.script_file import ScriptFile
from featd.catalog import claim, connect, enqueue, leases, live, pairing
from featd.catalog.leases import ADOPTION
from featd.catalog.settle import Identity
from featd.config import places
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.pool import DecoderPool
from featd.decoders.wire import Hashed, RootOffline
from featd.errors import CatalogUnavailableError, FeatdError, StoreUnavailableError
from featd.paths import from_catalog, mtime_of
from featd.processes.signals import is_running
from featd.progress import Advance
from featd.shards.store import lacks_room
from featd.shards.write import fits
from featd.states import ADOPTED, ClaimedImage, Failure, Lease, State, Unchanged
from featd.worker.claims import Held
from featd.worker.plan import WorkerPlan
from featd.worker.renewal import Renewal
from featd.worker.writer import ShardKind, VectorBatch, Writer

CLAIM_SECONDS = 5.0
"""For so long no worker claims an image that is enqueued here: it is claimed here next."""
SHARD_SECONDS = 3600.0
"""Shards wait for so long to be full: what is not sealed is quickly done again."""
AGAIN = "what is adopted stays; run `featd adopt` again, and it goes on"


def look(
    catalog: sa.Engine, chosen: Chosen, files: Sequence[ScriptFile], places: Places, outcome: Outcome
) -> None:
    """Count in `outcome` what `adopt` would do now, as far as can be told without reading the images.
    CatalogUnavailableError; ScriptFileError."""
    for placed in places.blocks(files):
        some, _ = _finite(files, placed, chosen, outcome)
        with connect.reading(catalog) as conn:
            known = live.states_at(conn, chosen.root, [place.found.path for place in some])
        for place in some:
            state = _state(place, known)
            if state in (None, State.PENDING):
                outcome.adopted += 1
            else:
                _count(outcome, files, place, state)


def adopt(
    catalog: sa.Engine,
    chosen: Chosen,
    identity: Identity,
    files: Sequence[ScriptFile],
    places: Places,
    outcome: Outcome,
    advance: Advance,
    stopping: Callable[[], bool],
) -> None:
    """Take over the vectors of all placed rows; counts in `outcome`. Ends early, and whole, once `stopping`.
    LeaseLostError; CatalogUnavailableError; StoreUnavailableError; ScriptFileError."""
    plan = chosen.plan
    _end_dead(catalog, plan)
    total = places.count()
    with _Adoption(catalog, chosen, identity, outcome) as adoption:
        done = 0
        for some in places.blocks(files):
            if stopping():
                break
            adoption.take(files, some, stopping)
            done += len(some)
            advance("adopting", done, total)
        adoption.finish()


class _Adoption:
    """A lease with its renewal, a writer, and decoders that read and hash files."""

    def __init__(self, catalog: sa.Engine, chosen: Chosen, identity: Identity, outcome: Outcome) -> None:
        self._catalog = catalog
        self._chosen = chosen
        self._identity = identity
        self._outcome = outcome
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> _Adoption:
        plan, catalog = self._chosen.plan, self._catalog
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="featd-adopt-"))
            self._slots = max(1, plan.batch)
            self._pool = undo.enter_context(
                DecoderPool(
                    self._chosen.preprocess,
                    {root.key: root.follow_symlinks for root in plan.roots},
                    decoders=plan.decoders,
                    trays=1,
                    batch=self._slots,
                    hands_path=Path(folder) / "adopt.hands",
                    places=places(plan.roots),
                )
            )
            self._lease: Lease = connect.transact(
                catalog,
                leases.open_lease,
                host=plan.seat,
                pid=os.getpid(),
                device=ADOPTION,
                engine=ADOPTED,
                lease_seconds=plan.lease_seconds,
            )
            undo.callback(self._end_lease)
            crash_point(CrashPoint.ADOPT_LEASE)
            key = pairing.check_under_lease(catalog, plan.store.path)
            self._renewal = Renewal(catalog, self._lease, plan.lease_seconds, dict)
            self._held = Held()
            blobs = {self._chosen.blob: self._chosen.width}
            self._writer = Writer(
                catalog,
                self._lease,
                plan.store.model_copy(update={"shard_seconds": SHARD_SECONDS}),
                ShardKind(blobs, ADOPTED, plan.seat, key),
                self._identity,
                plan.retry,
                self._held,
            )
            self._renewal.start()
            undo.callback(self._renewal.stop)
            self._writer.start()
            undo.callback(self._writer.abandon)  # seals nothing more; after `finish`, there is nothing
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def finish(self) -> None:
        """Seal and settle what was taken. LeaseLostError; CatalogUnavailableError; StoreUnavailableError."""
        self._writer.finish()

    def take(self, files: Sequence[ScriptFile], some: list[Place], stopping: Callable[[], bool]) -> None:
        """Take over these rows of one file."""
        if self._renewal.failure is not None:
            raise self._renewal.failure
        if lacks_room(self._chosen.plan.store.path, self._chosen.plan.store.min_free):
            raise StoreUnavailableError(f"the store's disk has less than store.min_free: make room; {AGAIN}")
        some = [place for place in some if self._is_as_found(files, place)]
        some, vectors = _finite(files, some, self._chosen, self._outcome)
        if not some:
            return
        found = [place.found for place in some]
        root, catalog = self._chosen.root, self._catalog
        # Not in one transaction: each takes its locks in the order images, counters.
        connect.transact(catalog, enqueue.enqueue, root, found, delay_seconds=CLAIM_SECONDS)
        crash_point(CrashPoint.ADOPT_ENQUEUED)
        claimed = connect.transact(catalog, claim.claim_at, self._lease, root, found)
        crash_point(CrashPoint.ADOPT_CLAIMED)
        self._held.add(image.id for image in claimed)
        with connect.reading(catalog) as conn:
            known = live.states_at(conn, root, [one.path for one in found])
        mine = {image.path for image in claimed}
        rows = {place.found.path: at for at, place in enumerate(some)}
        for place in some:
            if place.found.path not in mine:
                _count(self._outcome, files, place, _state(place, known))
        hashed: list[Hashed] = []
        given_back: list[int] = []
        for result in self._read(claimed, stopping):
            match result:
                case Hashed():
                    hashed.append(result)
                case Unchanged():  # featd has a vector of this content: it stays
                    self._outcome.there += 1
                    self._writer.put(result)
                case Failure(image):
                    given_back.append(image.id)
                    _leave(self._outcome, files, some[rows[image.path]], Why.UNREADABLE, result.message)
        if hashed:
            hashed.sort(key=lambda one: one.image.id)
            at = [rows[one.image.path] for one in hashed]
            self._writer.put(VectorBatch(hashed, {self._chosen.blob: vectors[at]}))
            self._outcome.adopted += len(hashed)
            crash_point(CrashPoint.ADOPT_HANDED)
        if given_back:
            connect.transact(catalog, claim.release, self._lease, given_back)
            self._held.drop(given_back)

    def _is_as_found(self, files: Sequence[ScriptFile], place: Place) -> bool:
        """Whether the file still is as the scan found it, perhaps an hour ago: else the catalog may know better."""
        path = os.path.join(os.fsencode(self._chosen.root), from_catalog(place.found.path))  # noqa: PTH118
        try:
            now = os.stat(path)  # noqa: PTH116
        except OSError:
            return True  # who reads it finds out why
        if (now.st_size, mtime_of(now)) == (place.found.size, place.found.mtime_ns):
            return True
        _leave(self._outcome, files, place, Why.NEWER, "it was changed while this command ran")
        return False

    def _read(
        self, images: Sequence[ClaimedImage], stopping: Callable[[], bool]
    ) -> Iterator[Hashed | Unchanged | Failure]:
        """Read and hash these images; fewer once `stopping`: the end of the lease releases the others. FeatdError where
        the root goes offline."""
        waiting = list(reversed(images))
        free = list(range(self._slots))
        while (waiting and not stopping()) or self._pool.pending:
            while waiting and free and not stopping():
                self._pool.submit(free.pop(), waiting.pop())
            for slot, result in self._pool.poll(1.0):
                free.append(slot)
                if isinstance(result, RootOffline):
                    raise FeatdError(f"root {result.image.root} is offline: {AGAIN}")
                if isinstance(result, Hashed | Unchanged | Failure):
                    yield result

    def _end_lease(self) -> None:
        with contextlib.suppress(CatalogUnavailableError):  # then it expires
            connect.transact(
                self._catalog, leases.end_lease, self._lease, "the adoption ended", self._chosen.plan.retry
            )


def _end_dead(catalog: sa.Engine, plan: WorkerPlan) -> None:
    """End the leases of adoptions that were killed, so that what they had claimed can be claimed again."""
    with connect.reading(catalog) as conn:
        dead = [one for one in leases.open_leases(conn, plan.seat) if not is_running(one.pid)]
        dead += leases.expired_leases(conn)
    for one in dead:
        if one.device == ADOPTION:
            connect.transact(catalog, leases.end_lease, one.lease, "the adoption was killed", plan.retry)


def _finite(
    files: Sequence[ScriptFile], some: list[Place], chosen: Chosen, outcome: Outcome
) -> tuple[list[Place], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Those of these places, all of one file, whose vectors are finite as the store keeps them, and their vectors."""
    if not some:
        return [], np.empty((0, chosen.width), np.float32)
    file = files[some[0].file]
    first = some[0].row
    vectors = file.vectors(first, some[-1].row + 1)[[place.row - first for place in some]]
    finite = fits(vectors, chosen.plan.store.dtype)
    for at in np.flatnonzero(~finite).tolist():
        _leave(outcome, files, some[at], Why.NOT_FINITE, f"NaN or infinity, as {chosen.plan.store.dtype}")
    return [some[at] for at in np.flatnonzero(finite).tolist()], vectors[finite]


def _state(place: Place, known: dict[str, tuple[State, int, int]]) -> State | None:
    """The state of the image of a place; None where there is none, or it is of another version of the file."""
    state, *version = known.get(place.found.path, (State.PENDING,))
    return state if version == [place.found.size, place.found.mtime_ns] or state is State.CLAIMED else None


def _count(outcome: Outcome, files: Sequence[ScriptFile], place: Place, state: State | None) -> None:
    """Count a place whose image is not to be claimed."""
    if state is State.DONE:
        outcome.there += 1
    else:
        _leave(outcome, files, place, Why.FAILED if state is State.FAILED else Why.IN_WORK)


def _leave(outcome: Outcome, files: Sequence[ScriptFile], place: Place, why: Why, detail: str = "") -> None:
    file = files[place.file]
    (name,) = file.names(place.row, place.row + 1)
    outcome.leave(file, place.row, name, why, detail)
