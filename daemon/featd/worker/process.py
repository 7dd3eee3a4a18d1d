"""The worker process, from its start to its exit code."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, instance, leases, live, migrate, pairing, root_names
from featd.catalog.settle import Identity
from featd.config import places
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.pool import DecoderPool
from featd.engines import cuda
from featd.engines.precision import require_precision
from featd.errors import CatalogUnavailableError, DeviceError, EngineError, FeatdError
from featd.processes import devices
from featd.processes.link import ChildLink
from featd.processes.records import Fruitful, LeaseOpened, MemoryShort, Proven, Ready
from featd.processes.signals import StopFlag
from featd.roots import check_apart
from featd.shards.store import StoreKey, lacks_room
from featd.states import Lease
from featd.worker import device_memory, golden
from featd.worker.claims import Claims, Held
from featd.worker.golden import Golden
from featd.worker.model import Model, differences, load_model
from featd.worker.moved import Moved
from featd.worker.pipeline import TRAYS, Pipeline, hang_limit
from featd.worker.plan import WorkerPlan
from featd.worker.renewal import Renewal
from featd.worker.shares import Shares
from featd.worker.thread import WorkerThread
from featd.worker.writer import ShardKind, Writer

log = logs.get("worker")

STUCK_SECONDS = 300.0
"""Without progress for so long, a thread is stuck: sealing the largest shard on a slow disk takes less."""
BOOT_SECONDS = 900.0
"""A net that takes longer than this to load and to run once is taken to hang."""


@dataclass(frozen=True, slots=True)
class Booted:
    """What a worker has before it opens a lease."""

    model: Model
    golden: Golden
    batch_seconds: float
    identity: Identity
    compared: bool
    """Whether the catalog had golden vectors to compare with."""


def boot(plan: WorkerPlan, catalog: sa.Engine) -> Booted:
    """Check store and fingerprint, load the net, time a batch and compare the golden vectors."""
    pairing.check(catalog, plan.store.path)
    with connect.reading(catalog) as conn:
        held, held_spec, stored = instance.fingerprint(conn), instance.spec(conn), instance.golden(conn)
    device = devices.isolate(plan.device)
    require_precision(plan.model.precision, device)
    device_memory.tell(plan)
    model = load_model(
        plan.model,
        plan.preprocess,
        plan.store.dtype,
        device,
        plan.threads,
        l2=plan.store.l2,
        pixels=True,
    )
    instance.check_fingerprint(held, model.fingerprint, differences(held_spec, model.spec))
    pictures = Golden(model, plan.batch)
    vectors = pictures.run()
    if stored is not None:
        pictures.check(stored, vectors)
    batch_seconds = pictures.fit_batch(plan.lease_seconds)
    identity = Identity(model.fingerprint, model.spec, golden.pack(vectors))
    return Booted(model, pictures, batch_seconds, identity, stored is not None)


def prove(plan: WorkerPlan, catalog: sa.Engine) -> Booted:
    """At a start, by the first worker: `boot`, and see that everything else is right before work begins. FeatdError
    with the way out."""
    check_apart([root.path for root in plan.roots])
    migrate.check_schema(catalog)
    connect.transact(catalog, lambda _: None)  # fails where the catalog cannot be written
    root_names.check(catalog, plan.roots)
    pairing.check_seat(catalog, plan.seat, plan.seat_key)
    booted = boot(plan, catalog)
    pairing.pair(catalog, plan.store.path, plan.seat, plan.lease_seconds)
    return booted


def booted_at_start(link: ChildLink, plan: WorkerPlan, catalog: sa.Engine) -> Booted:
    """What `boot` returns, once the worker may begin."""
    if not link.proves:
        booted = boot(plan, catalog)
    else:
        try:
            booted = prove(plan, catalog)
        except FeatdError as error:
            link.refuse(str(error), of_device=isinstance(error, DeviceError | EngineError))
            raise
        link.report(Proven())
    link.await_go(lambda: link.beat(BOOT_SECONDS))
    return booted


def run(link: ChildLink, plan: WorkerPlan) -> int:
    """Load the model, work until told to stop, seal and settle, release the rest. Returns the exit code."""
    link.beat(BOOT_SECONDS)
    plan = replace(plan, batch=max(1, plan.batch >> link.halvings))
    catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
    booted = booted_at_start(link, plan, catalog)
    stop = StopFlag()
    engine = booted.model.engine
    lease = connect.transact(
        catalog,
        leases.open_lease,
        host=plan.seat,
        seat=plan.seat_key,
        pid=os.getpid(),
        device=plan.label,
        engine=engine.name,
        lease_seconds=plan.lease_seconds,
    )
    crash_point(CrashPoint.LEASE_OPENED)
    link.report(LeaseOpened(lease))
    # A start of another host may have changed the nonce while the net was loaded.
    key = pairing.check_under_lease(catalog, plan.store.path)
    worker = Worker(link, plan, catalog, lease, booted, key)
    reason = "stopped"
    try:
        log.info(
            "model_loaded",
            "model loaded and checked",
            device=plan.label,
            engine=engine.name,
            batch=booted.golden.batch,
            batch_ms=round(booted.batch_seconds * 1000, 1),
        )
        link.report(Ready())
        while not stop.stopping:
            worker.step()
        worker.finish()
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, EngineError):
            worker.abandon()  # the last vectors of a faulty device may be wrong
        raise
    finally:
        worker.close(reason)
        engine.close()
        catalog.dispose()
    return 0


class Worker:
    """The threads of a worker. `step` is one turn of its main loop."""

    def __init__(
        self,
        link: ChildLink,
        plan: WorkerPlan,
        catalog: sa.Engine,
        lease: Lease,
        booted: Booted,
        key: StoreKey,
    ) -> None:
        roots = {root.key: root.follow_symlinks for root in plan.roots}
        folders = places(plan.roots)
        engine = booted.model.engine
        trays = TRAYS + engine.parallel
        self._catalog = catalog
        self._lease = lease
        self._policy = plan.retry
        self._booted = booted
        self._hands_path = plan.run_folder / f"{lease.token}.hands"
        self._state = "idle"
        self._link = link
        self._plan = plan
        self._told_fruitful = False
        self._device_memory = device_memory.Watch(plan)
        self._promise = functools.partial(link.beat, hang_limit(booted.batch_seconds))
        booted.golden.beat = self._beat
        self._golden_agreed(booted.compared)
        self._threads: tuple[WorkerThread, ...] = ()
        held = Held()
        shares = Shares()
        self._pool = DecoderPool(
            booted.model.preprocess,
            roots,
            decoders=plan.decoders,
            trays=trays,
            batch=booted.golden.batch,
            hands_path=self._hands_path,
            places=folders,
        )
        if engine.device != "cpu":
            cuda.pin(self._pool.trays)
        self._renewal = Renewal(
            catalog,
            lease,
            plan.lease_seconds,
            lambda: {
                **shares.report(self._state),
                "lease_seconds": plan.lease_seconds,
                "batch": booted.golden.batch,
                "device_memory": self._device_memory.seen,
            },
        )
        self._claims = Claims(
            catalog,
            lease,
            link,
            folders,
            held,
            ahead=trays * booted.golden.batch,
            lease_seconds=plan.lease_seconds,
            lacks_room=functools.partial(lacks_room, plan.store.path, plan.store.min_free),
        )
        kind = ShardKind(engine.blobs, engine.name, plan.seat, key)
        self._writer = Writer(
            catalog,
            lease,
            plan.store,
            kind,
            booted.identity,
            plan.retry,
            held,
            self._beat,
        )
        self._moved = Moved(
            catalog,
            plan.store.path,
            booted.identity.fingerprint,
            engine.blobs,
            self._writer.verified,
            self._beat,
        )
        self._pipeline = Pipeline(
            engine,
            self._pool,
            self._claims,
            self._writer,
            shares,
            dtype=plan.store.dtype,
            settle_seconds={root.key: root.settle_seconds for root in plan.roots},
            beat=self._beat,
            check_golden=self._check_golden,
            find_done=self._find_done,
            find_moved=self._moved.find,
            halve=self._halve,
            places=folders,
        )
        # Threads come last, so that an error above leaves none running.
        self._threads = (self._claims, self._writer, self._renewal)
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        """Promise to go on, unless a thread is stuck: then the supervisor ends this worker and starts another."""
        since = clock.monotonic() - STUCK_SECONDS
        stuck = [one.name for one in self._threads if one.is_alive() and one.turned_at < since]
        if stuck:
            log.error("thread_stuck", "threads make no progress; this worker will be replaced", threads=stuck)
        else:
            self._promise()

    def step(self) -> None:
        """One turn of the pipeline. Raises the error that ended one of the threads."""
        if clock.monotonic() >= self._golden_due:
            self._check_golden()
        self._device_memory.step(clock.monotonic())
        self._pipeline.step()
        self._state = "idle" if self._pipeline.idle else "working"
        if self._writer.fruitful and not self._told_fruitful:
            self._link.report(Fruitful())
            self._told_fruitful = True
        for thread in self._threads:
            if thread.failure is not None:
                raise thread.failure

    def finish(self) -> None:
        """Claim no more, then seal and settle what is through the net."""
        self._state = "stopping"
        self._claims.stop()
        self._pipeline.finish()
        self._writer.finish()

    def abandon(self) -> None:
        """Discard the vectors that are not sealed yet."""
        self._writer.abandon()

    def close(self, reason: str) -> None:
        """End decoders, threads and the lease; claimed images that are not done become pending again."""
        self._claims.stop()
        with contextlib.suppress(Exception):
            self._writer.finish()
        self._renewal.stop()
        self._moved.close()
        self._pipeline.close()
        self._pool.close()
        with contextlib.suppress(CatalogUnavailableError):
            connect.transact(self._catalog, leases.end_lease, self._lease, reason, self._policy)
            crash_point(CrashPoint.LEASE_ENDED)
            self._hands_path.unlink(missing_ok=True)

    def _halve(self, error: Exception) -> int:
        """Memory was short for a batch: how many images go through the net at once from now on."""
        self._booted.golden.halve(error)
        device_memory.tell(self._plan)
        self._link.report(MemoryShort())
        return self._booted.golden.batch

    def _find_done(self, root: str) -> str | None:
        with contextlib.suppress(CatalogUnavailableError), connect.reading(self._catalog) as conn:
            return live.some_done(conn, root)
        return None

    def _check_golden(self) -> None:
        """EngineError where the golden vectors differ from those in the catalog, or, while it has none, from those that
        this worker made when it started."""
        stored = None
        with contextlib.suppress(CatalogUnavailableError), connect.reading(self._catalog) as conn:
            stored = instance.golden(conn)
        pictures = self._booted.golden
        try:
            pictures.check(stored or self._booted.identity.golden, pictures.run())
        except EngineError:
            log.error(
                "golden_vectors_differ",
                "golden vectors differ; vectors sealed by this lease since they last agreed may be wrong",
                lease=self._lease.id,
                agreed_at=self._golden_at.isoformat(timespec="seconds"),
            )
            raise
        self._golden_agreed(stored is not None)

    def _golden_agreed(self, stored: bool) -> None:
        """Note that the golden vectors agree. `stored`: whether they were compared with the catalog's."""
        self._golden_at = clock.utcnow()
        self._golden_due = clock.monotonic() + (golden.EVERY_SECONDS if stored else golden.FIRST_SECONDS)
