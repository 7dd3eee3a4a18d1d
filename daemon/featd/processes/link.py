"""What stands between the supervisor and one child: pipes and memory made before the fork.

Everything here is a hint: a full pipe drops the record, a lost one is made good by the catalog.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featd import clock

MAX_RECORD = select.PIPE_BUF
"""Bytes of one record: what a pipe takes as a whole or not at all."""

_PR_SET_PDEATHSIG = 1
_DEADLINE = struct.Struct("d")


class Channel:
    """A non-blocking pipe of JSON records, one per line. Both ends stay open in the supervisor."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._rest = b""

    def send(self, record: Mapping[str, Any]) -> bool:
        """Write one record; False where it was dropped."""
        line = json.dumps(record).encode() + b"\n"
        if len(line) > MAX_RECORD:
            return False
        try:
            os.write(self.write_fd, line)
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def receive(self) -> Iterator[dict[str, Any]]:
        """The records that are there."""
        while True:
            try:
                chunk = os.read(self.read_fd, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Heartbeat:
    """The moment by which a child's loop will have come round again, in shared memory.

    The child moves it from its work loop, never from a helper thread: a child that hangs in native code
    misses it, whatever its threads do.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def expect(self, within_seconds: float) -> None:
        """Promise to be back within `within_seconds`."""
        _DEADLINE.pack_into(self._memory, 0, clock.monotonic() + within_seconds)

    def overdue(self, now: float) -> bool:
        """Whether the promise is broken. False before the first."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, 0)
        return bool(0.0 < deadline < now)

    def postpone(self, seconds: float) -> None:
        """Nobody ran for `seconds`: the promise holds so much longer."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, 0)
        if deadline > 0.0:
            _DEADLINE.pack_into(self._memory, 0, deadline + seconds)

    def clear(self) -> None:
        _DEADLINE.pack_into(self._memory, 0, 0.0)

    def close(self) -> None:
        self._memory.close()


class ChildLink:
    """A child's side: it reports, beats, hears and is woken."""

    def __init__(
        self,
        name: str,
        *,
        reports: Channel,
        inbox: Channel,
        heartbeat: Heartbeat,
        wake_fd: int,
        wake_fds: Mapping[str, int],
    ) -> None:
        self.name = name
        self.inbox = inbox
        self.wake_fd = wake_fd
        self._reports = reports
        self._heartbeat = heartbeat
        self._wake_fds = dict(wake_fds)

    def report(self, event: str, **fields: Any) -> None:
        """Tell the supervisor."""
        self._reports.send({"child": self.name, "pid": os.getpid(), "event": event, **fields})

    def beat(self, within_seconds: float) -> None:
        """Promise the supervisor that this loop comes round within `within_seconds`."""
        self._heartbeat.expect(within_seconds)

    def wake_others(self) -> None:
        """There is work: end the other children's sleep."""
        for name, fd in self._wake_fds.items():
            if name != self.name:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(fd, 1)

    def wake_self(self) -> None:
        """End the sleep of another thread of this child."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.wake_fd, 1)

    def take_wake(self) -> bool:
        """Whether somebody woke this child since the last call."""
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            return False
        return True


Target = Callable[[ChildLink], int]
"""What a child runs; returns its exit code."""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the call
        os._exit(1)
