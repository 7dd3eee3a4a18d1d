"""The composition root: settings -> child specs -> supervisor. Start reading here; README.md shows the way."""

from __future__ import annotations

import contextlib
import faulthandler
import socket
from collections.abc import Collection
from pathlib import Path

from featd import __version__, logs
from featd.config import Settings, load, password_is_readable, places
from featd.errors import ConfigError, FeatdError, StoreUnavailableError, reason
from featd.ingest.plan import IngestPlan
from featd.janitor.plan import JanitorPlan
from featd.processes import devices
from featd.processes.child import ChildSpec
from featd.processes.hands import mark_escalated
from featd.processes.link import ChildLink
from featd.processes.seats import check_name, folder_of
from featd.report.watched import Watched
from featd.shards.store import is_store, refuse_root
from featd.sizing import sizes
from featd.start.preflight import check_without_net, prove_without_net
from featd.start.reload import ConfigReload, Configuration
from featd.start.seat import Taken, take
from featd.supervisor.state_file import forget_failed_start, leave_failed_start
from featd.supervisor.supervisor import Supervisor
from featd.supervisor.systemd import Notifier
from featd.web.plan import WebPlan
from featd.worker.plan import WorkerPlan

log = logs.get("daemon")

ROLES = ("work", "ingest", "web")
"""What a seat may do. The janitor always runs: it ends the leases of the seat's dead workers."""
FIRST_WORKER = "worker-0"
"""At a start it finds out whether everything is right, before anything else begins."""
MAX_BOOT_FAILURES = 5
"""How often a process may fail to start in a drain, also where the catalog or the store is out of reach. Without
--drain it is then tried again for ever, ever more slowly."""


def run(
    settings: Settings,
    *,
    drain: bool,
    config: Path | None = None,
    seat: str | None = None,
    roles: Collection[str] = ROLES,
) -> int:
    """Run featd until it is told to stop, or (drain) until nothing is left to do; returns the exit code.

    `config` is the file that `settings` came from: SIGHUP reads it again, except in a drain. `seat`: its name; None for
    that of the host. `roles`: some of ROLES.
    """
    logs.configure(settings.log.level, settings.log.format)
    logs.setup()
    faulthandler.enable(2)  # systemd's watchdog aborts a supervisor that hangs: leave its stack
    refuse_root(settings.store.path)
    if not settings.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    notifier = Notifier()
    name = socket.gethostname() if seat is None else check_name(seat)
    folder = folder_of(settings.state_folder, name)
    with contextlib.ExitStack() as undo:
        taken: Taken | None = None
        # Before the net is loaded, so that a second featd does not load it in vain. A store that is not there or cannot
        # be written hides no other reason.
        with contextlib.suppress(OSError):
            if is_store(settings.store.path):
                taken = take(settings, name, undo)
        if taken is None:
            check_without_net(configured(settings, name, drain=drain).worker)
            try:
                taken = take(settings, name, undo)
            except OSError as error:
                raise StoreUnavailableError(f"{folder}: {reason(error)}") from error
        locks, key = taken.descriptors, taken.key

        def read(settings: Settings) -> Configuration:
            return configured(settings, name, drain=drain, key=key, roles=roles)

        configuration = read(settings)

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
            reload = ConfigReload(config, lambda: read(load(config)), configuration, close=locks)
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
            prover=FIRST_WORKER if "work" in roles else None,
            on_proven=tell_start,
        )
        if "work" not in roles:
            prove_without_net(configuration.worker, locks)
            tell_start()
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


def configured(
    settings: Settings, seat: str, *, drain: bool, key: str | None = None, roles: Collection[str] = ROLES
) -> Configuration:
    """The children that the settings ask for, each with a plan of what it needs: settings end here.

    The janitor comes first: it ends leases of earlier runs before any worker claims. `key`: what the leases of the seat
    carry, once it is taken.
    """
    folder = folder_of(settings.state_folder, seat)
    janitor = JanitorPlan(
        catalog_url=settings.catalog.url,
        lease_seconds=settings.workers.lease_seconds,
        retry=settings.retry.policy,
        seat=seat,
        seat_key=key,
        run_folder=folder,
        store=settings.store,
        feed_days=settings.catalog.feed_days,
        purge_gone_days=settings.catalog.purge_gone_days,
        roots=places(settings.roots) if drain else {},
        draining=drain,
        scans="ingest" in roles,
        search=settings.search.enabled and not drain,
    )
    ingest = IngestPlan(
        catalog_url=settings.catalog.url,
        lease_seconds=settings.workers.lease_seconds,
        seat=seat,
        roots=settings.roots,
        once=drain,
    )
    chosen = sizes(settings)
    workers = [
        WorkerPlan(
            catalog_url=settings.catalog.url,
            lease_seconds=settings.workers.lease_seconds,
            retry=settings.retry.policy,
            seat=seat,
            seat_key=key,
            run_folder=folder,
            roots=settings.roots,
            # A drain ends with the last image: nothing is worth waiting for.
            store=settings.store.model_copy(update={"idle_seconds": 0.0}) if drain else settings.store,
            model=settings.model,
            preprocess=settings.preprocess,
            device=device,
            label=label,
            threads=chosen.threads,
            batch=chosen.batch,
            decoders=chosen.decoders,
        )
        for device, label in zip(chosen.devices, devices.labels(list(chosen.devices)), strict=True)
    ]
    specs = [ChildSpec("janitor", _janitor, janitor, last=True)]
    if "ingest" in roles:
        specs.append(ChildSpec("ingest", _ingest, ingest, after=("janitor",), once=drain))
    if "work" in roles:
        specs += [
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
        ]
    if settings.web.enabled and "web" in roles:
        page = WebPlan(
            catalog_url=settings.catalog.url,
            watched=Watched.of(settings),
            address=settings.web.address,
            port=settings.web.port,
            token=settings.web.token,
        )
        specs.append(ChildSpec("web", _web, page))
    return Configuration(settings.by_key(), specs, settings.workers.stop_seconds, settings.log, workers[0])


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
