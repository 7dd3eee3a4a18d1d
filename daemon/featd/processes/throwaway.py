"""The one fork of featd, and throw-away processes: for what may abort or hang, or must not be loaded here."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featd import clock
from featd.errors import (
    EXIT_BAD_CONFIG,
    EXIT_ERROR,
    EXIT_OK,
    EXIT_OUT_OF_REACH,
    CatalogUnavailableError,
    ConfigError,
    FeatdError,
)
from featd.processes.last_words import telling
from featd.processes.signals import HANDLED, die_with_parent, name_of, reset_in_child

DEATH_SECONDS = 2.0
"""A process that is killed is waited for as long; the kernel keeps one that is in a call to a dead mount."""


def fork(work: Callable[[], int], stderr_fd: int, close: Sequence[int] = ()) -> int:
    """Fork a process that exits with the code that `work` returns; returns its pid. OSError.

    The process dies with its parent, has Python's own signal handlers, and has closed `close`. Its descriptor 2 is
    `stderr_fd`: what is written there last (the message of a FeatdError, a traceback, words of native code) are its
    last words.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that arrives before the child has handlers of its own must wait for them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
    finally:
        if os.getpid() == parent:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return pid
    code = EXIT_ERROR
    try:
        reset_in_child()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        die_with_parent(parent)
        for fd in close:
            os.close(fd)
        os.dup2(stderr_fd, 2)
        code = work()
    except FeatdError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a throw-away process ended. `text` is what its work returned, or its error's message."""

    code: int
    text: str
    last_words: str

    def raise_error(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.code == EXIT_OK:
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


class Throwaway:
    """A process that runs `work` once; `wait` for the answer, or `poll` until it is there and then
    `end`."""

    def __init__(self, work: Callable[[], str], close: Sequence[int] = ()) -> None:
        self._said = os.memfd_create("said", os.MFD_CLOEXEC)
        self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self.pid: int | None = fork(lambda: _answer(work, self._said), self._stderr, close)

    def poll(self) -> Answer | None:
        """The answer, once it is there."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = None
        return Answer(os.waitstatus_to_exitcode(status), _read(self._said), telling(_read(self._stderr)))

    def wait(self, seconds: float, doing: str, turn: Callable[[float], None] = lambda now: None) -> Answer:
        """The answer, and the end of the process. `turn` is called every second with the monotonic time. FeatdError
        where it takes longer."""
        deadline = clock.monotonic() + seconds
        ended = os.pidfd_open(self.pid or 0)
        try:
            while (answer := self.poll()) is None:
                now = clock.monotonic()
                turn(now)
                if now > deadline:
                    raise FeatdError(f"{doing} took more than {seconds:g} s")
                select.select([ended], [], [], 1.0)
            return answer
        finally:
            os.close(ended)
            self.end()

    def end(self) -> None:
        """Kill the process if it still runs, and forget it. One that waits for a dead mount may die much later."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            died = os.pidfd_open(self.pid)
            select.select([died], [], [], DEATH_SECONDS)
            os.close(died)
            os.waitpid(self.pid, os.WNOHANG)
            self.pid = None
        for fd in (self._said, self._stderr):
            with contextlib.suppress(OSError):
                os.close(fd)


def _answer(work: Callable[[], str], said: int) -> int:
    try:
        text, code = work(), EXIT_OK
    except FeatdError as error:
        text, code = str(error), error.exit_code
    except Exception as error:
        text, code = f"{type(error).__name__}: {error}", EXIT_ERROR
    os.write(said, text.encode(errors="backslashreplace"))
    return code


def _read(fd: int) -> str:
    size = os.lseek(fd, 0, os.SEEK_END)
    return os.pread(fd, size, 0).decode(errors="replace")
