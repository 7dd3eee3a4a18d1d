"""The composition root: settings -> child specs -> supervisor. Start reading here; README.md shows the way."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featd import clock, logs
from featd.child import ChildSpec
from featd.config import Settings
from featd.errors import FeatdError, LockHeldError
from featd.images.hands import mark_escalated
from featd.link import ChildLink
from featd.preflight import check_beforehand
from featd.reload import ConfigReload
from featd.shards.store import is_store, run_folder
from featd.supervisor import Supervisor
from featd.supervisor_state import forget_failed_start, leave_failed_start
from featd.systemd import Notifier
from featd.worker import devices

log = logs.get("daemon")

LOCK_SECONDS = 2.0
"""A start waits this long for the lock: the old supervisor's children close it as they die."""
MAX_BOOT_FAILURES = 5
"""Of a worker in a drain; the daemon itself tries for ever, ever more slowly."""


def run(settings: Settings, *, drain: bool, config: Path | None = None) -> int:
    """Run featd until it is told to stop, or (drain) until nothing is left to do; returns the exit code.

    `config` is the file that `settings` came from: SIGHUP reads it again, but for a drain.
    """
    logs.configure(settings.log.level, settings.log.format)
    logs.setup()
    faulthandler.enable(2)  # systemd's watchdog aborts a supervisor that hangs: leave its stack
    notifier = Notifier()
    host = socket.gethostname()
    try:
        check_beforehand(settings, notifier)
    except FeatdError as error:
        with contextlib.suppress(OSError):  # a hint, where the store can be written
            if is_store(settings.store.path):  # else it may be a disk that is not mounted
                leave_failed_start(run_folder(settings.store.path, host), str(error), error.exit_code)
        raise
    folder = run_folder(settings.store.path, host)
    lock_fd = take_lock(folder.parent / f"{host}.lock")
    forget_failed_start(folder)
    reload = None
    if config is not None and not drain:
        specs = functools.partial(child_specs, host=host, drain=False)
        reload = ConfigReload(config, settings, specs, close=[lock_fd])
    try:
        supervisor = Supervisor(
            child_specs(settings, host, drain=drain),
            run_folder=folder,
            stop_seconds=settings.workers.stop_seconds,
            deaths_to="janitor",
            max_boot_failures=MAX_BOOT_FAILURES if drain else None,
            on_escalate=functools.partial(_excuse, folder),
            close_in_children=[lock_fd],
            notifier=notifier,
            reload=reload,
        )
        code = supervisor.run()
        if supervisor.failure:
            with contextlib.suppress(OSError):
                leave_failed_start(folder, supervisor.failure, code)
        return code
    finally:
        os.close(lock_fd)


def child_specs(settings: Settings, host: str, *, drain: bool) -> list[ChildSpec]:
    """The janitor first: it ends what is left of former runs before any worker claims."""
    chosen = devices.resolve(settings.workers.devices)
    threads = devices.cpu_threads(chosen)
    workers = [
        ChildSpec(
            f"worker-{index}",
            functools.partial(
                _worker, settings=settings, host=host, device=device, label=label, threads=threads
            ),
            after=("janitor",),
            essential=True,
        )
        for index, (device, label) in enumerate(zip(chosen, devices.labels(chosen), strict=True))
    ]
    return [
        ChildSpec(
            "janitor", functools.partial(_janitor, settings=settings, host=host, drain=drain), last=True
        ),
        ChildSpec(
            "ingest",
            functools.partial(_ingest, settings=settings, host=host, drain=drain),
            after=("janitor",),
            once=drain,
        ),
        *workers,
    ]


# Each child imports its own room after the fork: the supervisor's process holds no database, no engine and
# no HDF5, so that nothing of theirs can break it or be carried into a child.


def _janitor(link: ChildLink, settings: Settings, host: str, drain: bool) -> int:
    from featd.janitor import process

    return process.run(link, settings, host, draining=drain)


def _ingest(link: ChildLink, settings: Settings, host: str, drain: bool) -> int:
    from featd.ingest import process

    return process.run(link, settings, host, once=drain)


def _worker(link: ChildLink, settings: Settings, host: str, device: str, label: str, threads: int) -> int:
    from featd.worker import process

    return process.run(link, settings, host, device, label, threads)


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
                    f"featd runs already on this store and host (pid {holder}): `featd status` shows it"
                ) from None
            clock.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _excuse(run: Path, lease: Mapping[str, Any]) -> None:
    mark_escalated(run / f"{lease['token']}.hands")
