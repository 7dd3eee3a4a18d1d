"""The composition root: settings -> child specs -> supervisor. Start reading here; README.md shows the way."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from featd import __version__, clock, logs
from featd.config import Settings, load, password_is_readable
from featd.errors import ConfigError, FeatdError, LockHeldError, StoreUnavailableError, reason
from featd.ingest.plan import IngestPlan
from featd.janitor.plan import JanitorPlan
from featd.processes import devices
from featd.processes.child import ChildSpec
from featd.processes.hands import mark_escalated
from featd.processes.link import ChildLink
from featd.report.watched import Watched
from featd.shards.atomic import make_folder
from featd.shards.store import instance_of, is_store, refuse_root, run_folder
from featd.start.preflight import check_without_net
from featd.start.reload import ConfigReload, Configuration
from featd.supervisor.state_file import forget_failed_start, leave_failed_start
from featd.supervisor.supervisor import Supervisor
from featd.supervisor.systemd import Notifier
from featd.web.plan import WebPlan
from featd.worker.plan import WorkerPlan

log = logs.get("daemon")

LOCK_SECONDS = 2.0
"""A start waits this long for the lock, which children of an old supervisor hold until they are dead."""
FIRST_WORKER = "worker-0"
"""At a start it finds out whether everything is right, before anything else begins."""
MAX_BOOT_FAILURES = 5
"""How often a process may fail to start in a drain, also where the catalog or the store is out of reach. Without
--drain it is then tried again for ever, ever more slowly."""


def run(settings: Settings, *, drain: bool, config: Path | None = None) -> int:
    """Run featd until it is told to stop, or (drain) until nothing is left to do; returns the exit code.

    `config` is the file that `settings` came from: SIGHUP reads it again, except in a drain.
    """
    logs.configure(settings.log.level, settings.log.format)
    logs.setup()
    faulthandler.enable(2)  # systemd's watchdog aborts a supervisor that hangs: leave its stack
    refuse_root(settings.store.path)
    if not settings.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    notifier = Notifier()
    host = socket.gethostname()
    folder = run_folder(settings.store.path, host)
    configuration = configured(settings, host, drain=drain)
    with contextlib.ExitStack() as undo:
        locks: list[int] = []
        # Before the net is loaded, so that a second featd does not load it in vain. A store that is not there or cannot
        # be written hides no other reason.
        with contextlib.suppress(OSError):
            if is_store(settings.store.path):
                locks = _locked(settings.store.path, host, undo)
        if not locks:
            check_without_net(configuration.worker)
            locks = _locked(settings.store.path, host, undo)

        def tell_start() -> None:
            forget_failed_start(folder)
            if config is not None and password_is_readable(settings, config):
                log.warning(
                    "password_readable",
                    "everybody on this machine can read the database's password; use `chmod o-r`",
                    file=config,
                )
            log.info(
                "featd_started", f"featd {__version__} started", config=config, store=settings.store.path
            )

        reload = None
        if config is not None and not drain:
            reload = ConfigReload(
                config, lambda: configured(load(config), host, drain=False), configuration, close=locks
            )
        supervisor = Supervisor(
            configuration.specs,
            run_folder=folder,
            stop_seconds=configuration.stop_seconds,
            deaths_to="janitor",
            max_boot_failures=MAX_BOOT_FAILURES if drain else None,
            set_aside_after=settings.workers.set_aside_after,
            on_escalate=lambda lease: mark_escalated(folder / f"{lease.token}.hands"),
            close_in_children=locks,
            notifier=notifier,
            reload=reload,
            prover=FIRST_WORKER,
            on_proven=tell_start,
        )
        code = supervisor.run()
        if supervisor.refusal is not None:
            try:
                supervisor.refusal.raise_error()
            except FeatdError as error:
                with contextlib.suppress(OSError):  # only a hint
                    leave_failed_start(folder, str(error), error.exit_code)
                raise
        if supervisor.failure:
            with contextlib.suppress(OSError):
                leave_failed_start(folder, supervisor.failure, code)
        log.info("featd_stopped", "featd stopped", exit_code=code)
        return code


def _locked(store: Path, host: str, undo: contextlib.ExitStack) -> list[int]:
    """Make the run folder and take its host's locks until `undo`; returns their descriptors. OSError."""
    folder = run_folder(store, host)
    make_folder(folder)
    lock_fd = take_lock(folder.with_name(f"{folder.name}.lock"))
    undo.callback(os.close, lock_fd)
    name = take_name(f"featd/{instance_of(store)}/{host}")
    if name is None:
        return [lock_fd]
    undo.callback(name.close)
    return [lock_fd, name.fileno()]


@contextlib.contextmanager
def hold_locks(store: Path) -> Iterator[None]:
    """For a command that must not run beside featd on this host. LockHeldError; StoreUnavailableError; ConfigError for
    root where the store belongs to another user."""
    refuse_root(store)
    if not is_store(store):
        raise StoreUnavailableError(f"{store}: no store there: is the disk mounted?")
    with contextlib.ExitStack() as undo:
        host = socket.gethostname()
        try:
            _locked(store, host, undo)
        except OSError as error:
            raise StoreUnavailableError(f"store {store}: {reason(error)}") from error
        yield
        forget_failed_start(run_folder(store, host))  # what it did may have been the way out


def configured(settings: Settings, host: str, *, drain: bool) -> Configuration:
    """The children that the settings ask for, each with a plan of what it needs: settings end here.

    The janitor comes first: it ends leases of earlier runs before any worker claims.
    """
    folder = run_folder(settings.store.path, host)
    janitor = JanitorPlan(
        catalog_url=settings.catalog.url,
        lease_seconds=settings.workers.lease_seconds,
        retry=settings.retry.policy,
        host=host,
        run_folder=folder,
        store=settings.store,
        feed_days=settings.catalog.feed_days,
        purge_gone_days=settings.catalog.purge_gone_days,
        roots=tuple(root.path for root in settings.roots) if drain else (),
        draining=drain,
        search=settings.search.enabled and not drain,
    )
    ingest = IngestPlan(
        catalog_url=settings.catalog.url,
        lease_seconds=settings.workers.lease_seconds,
        host=host,
        roots=settings.roots,
        once=drain,
    )
    chosen = devices.resolve(settings.workers.devices, settings.workers.per_device)
    workers = [
        WorkerPlan(
            catalog_url=settings.catalog.url,
            lease_seconds=settings.workers.lease_seconds,
            retry=settings.retry.policy,
            host=host,
            run_folder=folder,
            roots=settings.roots,
            # A drain ends with the last image: nothing is worth waiting for.
            store=settings.store.model_copy(update={"idle_seconds": 0.0}) if drain else settings.store,
            model=settings.model,
            preprocess=settings.preprocess,
            device=device,
            label=label,
            threads=devices.cpu_threads(chosen),
            batch=settings.workers.batch,
            decoders=settings.workers.decoders,
        )
        for device, label in zip(chosen, devices.labels(chosen), strict=True)
    ]
    specs = [
        ChildSpec("janitor", _janitor, janitor, last=True),
        ChildSpec("ingest", _ingest, ingest, after=("janitor",), once=drain),
        *(
            ChildSpec(
                f"worker-{index}",
                _worker,
                plan,
                after=("janitor",),
                essential=True,
                device=plan.label,
                most_halvings=plan.batch.bit_length() - 1,
            )
            for index, plan in enumerate(workers)
        ),
    ]
    if settings.web.enabled:
        page = WebPlan(
            catalog_url=settings.catalog.url,
            watched=Watched.of(settings),
            address=settings.web.address,
            port=settings.web.port,
            token=settings.web.token,
        )
        specs.append(ChildSpec("web", _web, page))
    return Configuration(settings.by_key(), specs, settings.workers.stop_seconds, settings.log)


# Each child imports its own package after the fork, so that the supervisor's process loads no database, engine or HDF5.


def _janitor(link: ChildLink, plan: JanitorPlan) -> int:
    from featd.janitor import process

    link.await_go()
    return process.run(link, plan)


def _ingest(link: ChildLink, plan: IngestPlan) -> int:
    from featd.ingest import process

    link.await_go()
    return process.run(link, plan)


def _worker(link: ChildLink, plan: WorkerPlan) -> int:
    from featd.worker import process

    return process.run(link, plan)


def _web(link: ChildLink, plan: WebPlan) -> int:
    try:
        from featd.web import process
    except ImportError as error:
        raise ConfigError(
            f"web.enabled: the page needs {error.name}, which is not installed: `pip install 'featd[web]'`"
        ) from None
    return process.run(link, plan)


def take_name(name: str) -> socket.socket | None:
    """One supervisor per instance and host, also where the store was copied: a name in the kernel, which is free again
    when the socket is closed. LockHeldError. None in a sandbox without such sockets."""
    deadline = clock.monotonic() + LOCK_SECONDS
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        return None
    while True:
        try:
            held.bind(f"\0{name}"[:107])
            return held
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                held.close()
                return None
            if clock.monotonic() > deadline:
                held.close()
                raise LockHeldError(
                    "another featd of this instance is running on this host, with another store: one of the two stores"
                    " is a copy"
                ) from None
            clock.sleep(0.05)


def take_lock(path: Path) -> int:
    """One supervisor per store and host; returns the descriptor that holds the lock while it is open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    deadline = clock.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if clock.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                os.close(fd)
                raise LockHeldError(
                    f"another featd (pid {holder}) is running on this store and host: see `featd status`"
                ) from None
            clock.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
