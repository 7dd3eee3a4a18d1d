"""One child of the supervisor, from its first process to its last: what both sides share, and its last words."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from setproctitle import setproctitle

from featd import logs
from featd.processes.link import Channel, ChildLink, Heartbeat, Target
from featd.processes.throwaway import fork
from featd.states import Lease

READS_PER_TURN = 16
"""A child that floods its stderr must not keep the supervisor from its other work."""
WORDS_LINES = 100
"""Lines of a child's native stderr that are kept: enough for a stack dump."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child to run: `target` with its `plan`. `after` names the children that must be ready before its `await_go`
    returns.

    once: its exit with code 0 is its end. essential: featd stops when none of these can run.
    last: stopped after all others. device: what people call the device that it works on.
    most_halvings: how often its batch can be halved.
    """

    name: str
    target: Target
    plan: Any = None
    after: tuple[str, ...] = ()
    once: bool = False
    essential: bool = False
    last: bool = False
    device: str = ""
    most_halvings: int = 0


@dataclass(slots=True)
class Child:
    """The state of a child. `pid` is None between two of its processes; moments are monotonic seconds."""

    spec: ChildSpec
    inbox: Channel = field(default_factory=Channel)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    wake_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    go_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    # Of the child
    finished: bool = False
    given_up: int | None = None
    start_at: float = 0.0
    boot_failures: int = 0
    deaths: int = 0
    deaths_ever: int = 0
    fruitless: int = 0
    halvings: int = 0
    restarting: bool = False
    why: str = ""
    last_words: str = ""
    # Of its process
    pid: int | None = None
    started_at: float = 0.0
    may_go: bool = False
    ready: bool = False
    refusal: str = ""
    refused_for_device: bool = False
    lease: Lease | None = None
    asked_at: float | None = None
    aborted_at: float | None = None
    hung: bool = False
    stderr_fd: int | None = None
    words: deque[str] = field(default_factory=lambda: deque(maxlen=WORDS_LINES))
    _partial: bytes = b""

    @property
    def over(self) -> bool:
        """Whether it will not run again."""
        return self.pid is None and (self.finished or self.given_up is not None)

    def start(self, now: float, link: Callable[[], ChildLink], close_in_child: Sequence[int]) -> None:
        """Fork a process for it. `link` is called in the child. OSError."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        log_fd = os.dup(
            2
        )  # log lines go straight to our stderr; only other words of the child go through the pipe
        self.words.clear()
        self._partial = b""
        self.heartbeat.clear()
        self.started_at = now
        try:
            self.pid = fork(lambda: _run(self.spec, link, log_fd), write_fd, (read_fd, *close_in_child))
            self.stderr_fd = read_fd
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
            os.close(log_fd)

    def replace(self, spec: ChildSpec, now: float) -> None:
        """Start anew with `spec`: its process ends when it has finished what it has in hand, its history is void."""
        self.spec = spec
        self.finished, self.given_up = False, None
        self.deaths = self.boot_failures = self.fruitless = self.halvings = 0
        self.start_at = now
        self.restarting = self.pid is not None

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def go(self) -> None:
        """Let its process begin."""
        self.may_go = True
        os.eventfd_write(self.go_fd, 1)

    def read_stderr(self, *, quiet: bool = False) -> None:
        """Keep its last words, and pass its stderr on to our own, unless `quiet`."""
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
            if not quiet:
                with contextlib.suppress(OSError):
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.buffer.flush()
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            self.words.extend(line.decode(errors="replace") for line in lines)
            self._partial = self._partial[-4096:]

    def end_stderr(self, *, quiet: bool = False) -> None:
        """Its process is dead: read what is left. A grandchild may still hold the other end."""
        self.read_stderr(quiet=quiet)
        if self.stderr_fd is not None:
            os.close(self.stderr_fd)
            self.stderr_fd = None
        if self._partial:
            self.words.append(self._partial.decode(errors="replace"))
            self._partial = b""

    def forget_process(self) -> None:
        """Its process has ended: clear its state, so that it is not taken for the next one's."""
        self.pid, self.may_go, self.ready, self.refusal, self.lease = None, False, False, "", None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.go_fd)  # of a process that died before it took it
        self.asked_at, self.aborted_at, self.hung, self.refused_for_device = None, None, False, False
        self.heartbeat.clear()

    def close(self) -> None:
        self.inbox.close()
        self.heartbeat.close()
        os.close(self.wake_fd)
        os.close(self.go_fd)


def _run(spec: ChildSpec, link: Callable[[], ChildLink], log_fd: int) -> int:
    """In the child."""
    # A group of its own: Ctrl-C in a terminal reaches the supervisor alone, which then stops its children.
    os.setpgid(0, 0)
    setproctitle(f"featd: {spec.name}")
    logs.setup(stream=os.fdopen(log_fd, "w", buffering=1, errors="backslashreplace"))
    faulthandler.enable(2)
    return spec.target(link(), spec.plan)
