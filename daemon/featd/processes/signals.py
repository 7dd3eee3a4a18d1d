"""Signals as data: handlers only queue a number, and loops read the queue when they are ready."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Self

_PR_SET_PDEATHSIG = 1

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""What a supervisor answers to."""


OWN = frozenset(
    {
        signal.SIGABRT,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""Signals that a process causes itself."""


class SignalQueue:
    """While open, the given signals arrive in `pending` and make `fileno()` readable."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self.pending: deque[int] = deque()
        self._signals = tuple(signals)
        self._before: dict[signal.Signals, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> Self:
        for number in self._signals:
            self._before[number] = signal.signal(number, self._queue)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _queue(self, number: int, _frame: FrameType | None) -> None:
        self.pending.append(number)

    def fileno(self) -> int:
        return self._reader.fileno()

    def take(self) -> list[int]:
        """The signals that arrived since the last call, oldest first."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        taken = []
        while self.pending:  # one by one: another may arrive at any moment
            taken.append(self.pending.popleft())
        return taken


def reset_in_child() -> None:
    """Give a forked child Python's own handlers again. It ignores SIGINT, which the supervisor answers."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the call
        os._exit(1)


def is_running(pid: int) -> bool:
    """Whether a process of this number runs on this machine, perhaps another one than is meant."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_terminal() -> bool:
    """Whether this process has a terminal, whose closing is to end it: not where it was started with nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    except OSError:
        return False


def name_of(number: int) -> str:
    """SIGKILL for 9; the number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class StopFlag:
    """Set by SIGTERM in a child: its loop ends at its next turn. Wakes a poll on `fileno()`."""

    def __init__(self) -> None:
        self.stopping = False
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd
