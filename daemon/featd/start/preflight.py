"""What must be right before work starts: configuration, catalog, schema, store, net, fingerprint, device."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featd import clock
from featd.errors import (
    EXIT_BAD_CONFIG,
    EXIT_ERROR,
    EXIT_OUT_OF_REACH,
    CatalogUnavailableError,
    ConfigError,
    FeatdError,
)
from featd.processes.last_words import telling
from featd.processes.link import die_with_parent
from featd.processes.signals import name_of, reset_in_child
from featd.supervisor.systemd import Notifier
from featd.worker.plan import WorkerPlan

CHECK_SECONDS = 900.0
"""A net that takes longer than this to load and to run once hangs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a check ended. `text` is what it returned, or its error's message."""

    code: int
    text: str
    last_words: str

    def raise_error(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.code == 0:
            return
        if -self.code in (signal.SIGKILL, signal.SIGTERM):
            raise FeatdError(f"the check was ended by {name_of(-self.code)} (out of memory?): try again")
        if self.code < 0:
            # Caffe aborts on a bad model, which stays bad, and on CUDA errors, which may pass.
            passing = "cuda" in self.last_words.lower()
            raise (FeatdError if passing else ConfigError)(
                f"the net cannot be loaded: its engine died of {name_of(-self.code)}; its last words:\n"
                f"{self.last_words}"
            )
        error = {EXIT_BAD_CONFIG: ConfigError, EXIT_OUT_OF_REACH: CatalogUnavailableError}
        raise error.get(self.code, FeatdError)(self.text or self.last_words)


class Check:
    """A throw-away process for what may abort or hang, or must not be loaded here. `poll` until it answers."""

    def __init__(self, work: Callable[[], str], close: Sequence[int] = ()) -> None:
        self._said = os.memfd_create("said", os.MFD_CLOEXEC)
        self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        parent = os.getpid()
        self.pid: int | None = os.fork()
        if self.pid == 0:
            _run(work, parent, self._said, self._stderr, close)

    def poll(self) -> Answer | None:
        """The answer, once it is there."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = None
        return Answer(os.waitstatus_to_exitcode(status), _read(self._said), telling(_read(self._stderr)))

    def end(self) -> None:
        """Kill it if it still runs, and forget it."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None
        for fd in (self._said, self._stderr):
            with contextlib.suppress(OSError):
                os.close(fd)


def check_beforehand(plan: WorkerPlan, notifier: Notifier) -> None:
    """Everything that must be right before work starts, tried once in a throw-away process.

    Caffe aborts its process on a bad model, and CUDA does not survive a fork: neither may happen here.
    """
    if not plan.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    notifier.status("starting: loading the net", clock.monotonic())
    check = Check(functools.partial(_all_of_it, plan))
    end = os.pidfd_open(check.pid or 0)
    deadline = clock.monotonic() + CHECK_SECONDS
    try:
        while (answer := check.poll()) is None:
            now = clock.monotonic()
            notifier.still_starting(now)
            if now > deadline:
                raise FeatdError(f"the net does not load within {CHECK_SECONDS:g} s")
            select.select([end], [], [], 1.0)
    finally:
        os.close(end)
        check.end()
    answer.raise_error()


def _all_of_it(plan: WorkerPlan) -> str:
    from featd.catalog import connect, migrate
    from featd.worker import process as worker_process

    catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
    migrate.check_schema(catalog)
    connect.transact(catalog, lambda _: None)  # a catalog that cannot be written to is out of reach
    worker_process.boot(plan, catalog)
    return ""


def _run(work: Callable[[], str], parent: int, said: int, native_stderr: int, close: Sequence[int]) -> None:
    """The throw-away process: does the work, says how it went, and never returns."""
    code = EXIT_ERROR
    try:
        reset_in_child()
        die_with_parent(parent)
        for fd in close:
            os.close(fd)
        os.dup2(native_stderr, 2)
        os.write(said, work().encode())
        code = 0
    except FeatdError as error:
        os.write(said, str(error).encode(errors="backslashreplace"))
        code = error.exit_code
    except BaseException as error:
        os.write(said, f"{type(error).__name__}: {error}".encode(errors="backslashreplace"))
    finally:
        sys.stderr.flush()
        os._exit(code)


def _read(fd: int) -> str:
    size = os.lseek(fd, 0, os.SEEK_END)
    return os.pread(fd, size, 0).decode(errors="replace")
