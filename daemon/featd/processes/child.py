"""One child of the supervisor, over all its processes: the fork, what both sides share, its last words."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from featd import logs
from featd.errors import EXIT_ERROR, FeatdError
from featd.processes.link import Channel, ChildLink, Heartbeat, Target, die_with_parent
from featd.processes.signals import HANDLED, reset_in_child

READS_PER_TURN = 16
"""A child that floods its stderr must not keep the supervisor from its other work."""
WORDS_LINES = 100
"""Lines of a child's native stderr that are kept: enough for a stack dump."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child to run. `after` names the children that must be ready before it starts.

    once: its exit with code 0 is its end. essential: without any of these featd has nothing to live for.
    last: stopped when all others are gone.
    """

    name: str
    target: Target
    after: tuple[str, ...] = ()
    once: bool = False
    essential: bool = False
    last: bool = False


@dataclass(slots=True)
class Child:
    """A child's life. `pid` is None between its processes; moments are monotonic seconds."""

    spec: ChildSpec
    inbox: Channel = field(default_factory=Channel)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    wake_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    # Of the child
    finished: bool = False
    given_up: int | None = None
    start_at: float = 0.0
    boot_failures: int = 0
    deaths: int = 0
    restarting: bool = False
    why: str = ""
    last_words: str = ""
    # Of its process
    pid: int | None = None
    started_at: float = 0.0
    ready: bool = False
    lease: dict[str, Any] | None = None
    asked_at: float | None = None
    aborted_at: float | None = None
    hung: bool = False
    stderr_fd: int | None = None
    words: deque[str] = field(default_factory=lambda: deque(maxlen=WORDS_LINES))
    _partial: bytes = b""

    @property
    def over(self) -> bool:
        """It will not run again."""
        return self.pid is None and (self.finished or self.given_up is not None)

    def start(self, now: float, link: Callable[[], ChildLink], close_in_child: Sequence[int]) -> None:
        """Fork a process for it. `link` is called in the child."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        self.words.clear()
        self._partial = b""
        self.heartbeat.clear()
        self.started_at = now
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that arrives before the child has handlers of its own must wait for them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
        except OSError:
            os.close(read_fd)
            os.close(write_fd)
            raise
        finally:
            if os.getpid() == supervisor:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if pid == 0:
            _run(self.spec, link, supervisor, write_fd, (read_fd, *close_in_child))
        os.close(write_fd)
        self.pid = pid
        self.stderr_fd = read_fd

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def read_stderr(self) -> None:
        """Keep its last words, and pass on what it says in native code to our own stderr."""
        for _ in range(READS_PER_TURN):
            if self.stderr_fd is None:
                return
            try:
                chunk = os.read(self.stderr_fd, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                os.close(self.stderr_fd)
                self.stderr_fd = None
                return
            with contextlib.suppress(OSError):
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            self.words.extend(line.decode(errors="replace") for line in lines)
            self._partial = self._partial[-4096:]

    def end_stderr(self) -> None:
        """Its process is dead: take what is left. A grandchild may still hold the other end."""
        self.read_stderr()
        if self.stderr_fd is not None:
            os.close(self.stderr_fd)
            self.stderr_fd = None
        if self._partial:
            self.words.append(self._partial.decode(errors="replace"))
            self._partial = b""

    def forget_process(self) -> None:
        """Its process is buried: nothing of it may be taken for the next one's."""
        self.pid, self.ready, self.lease = None, False, None
        self.asked_at, self.aborted_at, self.hung = None, None, False
        self.heartbeat.clear()

    def close(self) -> None:
        self.inbox.close()
        self.heartbeat.close()
        os.close(self.wake_fd)


def _run(
    spec: ChildSpec, link: Callable[[], ChildLink], supervisor: int, stderr_fd: int, close: Sequence[int]
) -> None:
    """The child process's whole life; never returns."""
    code = EXIT_ERROR
    try:
        reset_in_child()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        # Its own group: a Ctrl-C in a terminal reaches the supervisor alone, and only that escalates.
        os.setpgid(0, 0)
        die_with_parent(supervisor)
        for fd in close:
            os.close(fd)
        # Log lines go straight to our stderr; what native code writes to fd 2 is kept as last words.
        logs.setup(stream=os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace"))
        os.dup2(stderr_fd, 2)
        os.close(stderr_fd)
        faulthandler.enable(2)
        code = spec.target(link())
    except FeatdError as error:
        print(error, file=sys.stderr)  # the last words: the supervisor passes them on
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
