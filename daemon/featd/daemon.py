"""The composition root: settings -> child specs -> supervisor. Start reading here; README.md shows the way."""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featd import clock, logs
from featd.catalog import connect, migrate
from featd.config import Settings
from featd.errors import (
    EXIT_BAD_CONFIG,
    EXIT_OUT_OF_REACH,
    CatalogUnavailableError,
    ConfigError,
    FeatdError,
    LockHeldError,
)
from featd.images.hands import mark_escalated
from featd.ingest import process as ingest_process
from featd.janitor import process as janitor_process
from featd.shards.store import run_folder
from featd.signals import name_of
from featd.supervisor import ChildSpec, Supervisor
from featd.worker import devices
from featd.worker import process as worker_process

log = logs.get("daemon")

LOCK_SECONDS = 2.0
"""A start waits this long for the lock: the old supervisor's children close it as they die."""
MAX_BOOT_FAILURES = 5
"""Of a worker in a drain; the daemon itself tries for ever, ever more slowly."""


def run(settings: Settings, *, drain: bool) -> int:
    """Run featd until it is told to stop, or (drain) until nothing is left to do; returns the exit code."""
    logs.setup()
    host = socket.gethostname()
    check_beforehand(settings)
    folder = run_folder(settings.store.path, host)
    lock_fd = take_lock(folder.parent / f"{host}.lock")
    try:
        supervisor = Supervisor(
            child_specs(settings, host, drain=drain),
            run_folder=folder,
            stop_seconds=settings.workers.stop_seconds,
            deaths_to="janitor",
            max_boot_failures=MAX_BOOT_FAILURES if drain else None,
            on_escalate=functools.partial(_excuse, folder),
            close_in_children=[lock_fd],
        )
        return supervisor.run()
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
                worker_process.run, settings=settings, host=host, device=device, label=label, threads=threads
            ),
            after=("janitor",),
            essential=True,
        )
        for index, (device, label) in enumerate(zip(chosen, devices.labels(chosen), strict=True))
    ]
    return [
        ChildSpec(
            "janitor",
            functools.partial(janitor_process.run, settings=settings, host=host, draining=drain),
            last=True,
        ),
        ChildSpec(
            "ingest",
            functools.partial(ingest_process.run, settings=settings, once=drain),
            after=("janitor",),
            once=drain,
        ),
        *workers,
    ]


def check_beforehand(settings: Settings) -> None:
    """Everything that must be right before work starts, tried once in a throw-away process.

    Caffe aborts its process on a bad model, and CUDA does not survive a fork: neither may happen here.
    """
    if not settings.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    said_read, said_write = os.pipe2(os.O_CLOEXEC)
    native_stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _check_in_child(settings, said_write, native_stderr)
    os.close(said_write)
    with os.fdopen(said_read, encoding="utf-8") as said:
        message = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(native_stderr, "rb") as words:
        words.seek(0)
        last_words = words.read()[-2000:].decode(errors="replace").strip()
    if code == 0:
        return
    if code < 0:
        raise ConfigError(
            f"the net cannot be loaded: its engine died of {name_of(-code)}; its last words:\n{last_words}"
        )
    error = {EXIT_BAD_CONFIG: ConfigError, EXIT_OUT_OF_REACH: CatalogUnavailableError}.get(code, FeatdError)
    raise error(message or last_words)


def _check_in_child(settings: Settings, said: int, native_stderr: int) -> None:
    code = 1
    try:
        os.dup2(native_stderr, 2)
        chosen = devices.resolve(settings.workers.devices)
        catalog = connect.open_catalog(settings.catalog.url, settings.workers.lease_seconds)
        migrate.check_schema(catalog)
        worker_process.boot(settings, catalog, devices.isolate(chosen[0]), devices.cpu_threads(chosen))
        code = 0
    except FeatdError as error:
        os.write(said, str(error).encode())
        code = error.exit_code
    except BaseException as error:
        os.write(said, f"{type(error).__name__}: {error}".encode())
    finally:
        sys.stderr.flush()
        os._exit(code)


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
