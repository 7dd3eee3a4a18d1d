"""What connects the supervisor and one child: pipes and memory made before the fork.

All of it is a hint: a full pipe drops the record, and the catalog makes up for a lost one.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featd import clock
from featd.processes.records import News, Record, Refused, Report, pack, unpack

MAX_RECORD = select.PIPE_BUF
"""Bytes of one record: what a pipe takes as a whole or not at all."""

_DEADLINE = struct.Struct("d")


class Channel:
    """A non-blocking pipe of records. Both ends stay open in the supervisor."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._rest = b""

    def send(self, record: Record) -> bool:
        """Write one record; False where it was dropped."""
        line = pack(record)
        if len(line) > MAX_RECORD:
            return False
        try:
            os.write(self.write_fd, line)
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def receive(self) -> Iterator[Record]:
        """The records that have arrived."""
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
                    yield unpack(line)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Heartbeat:
    """The moment by which a child's loop promises its next turn, in shared memory.

    The child moves it from its work loop, never from a helper thread, so that a child that hangs in native code
    misses it whatever its other threads do.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def expect(self, within_seconds: float) -> None:
        """Promise the next turn within `within_seconds`."""
        _DEADLINE.pack_into(self._memory, 0, clock.monotonic() + within_seconds)

    def overdue(self, now: float) -> bool:
        """Whether the promise is broken; False before the first one."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, 0)
        return bool(0.0 < deadline < now)

    def postpone(self, seconds: float) -> None:
        """No process ran for `seconds`: extend the promise by that."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, 0)
        if deadline > 0.0:
            _DEADLINE.pack_into(self._memory, 0, deadline + seconds)

    def clear(self) -> None:
        _DEADLINE.pack_into(self._memory, 0, 0.0)

    def close(self) -> None:
        self._memory.close()


class ChildLink:
    """The child's side: reports, heartbeat, inbox and wake-ups. `halvings`: how often its batch was halved before,
    because memory was short. `proves`: whether nothing else begins before it has reported that everything is right."""

    def __init__(
        self,
        name: str,
        *,
        reports: Channel,
        inbox: Channel,
        heartbeat: Heartbeat,
        wake_fd: int,
        wake_fds: Mapping[str, int],
        go_fd: int | None = None,
        halvings: int = 0,
        proves: bool = False,
    ) -> None:
        self.name = name
        self.halvings = halvings
        self.proves = proves
        self.inbox = inbox
        self.wake_fd = wake_fd
        self._reports = reports
        self._heartbeat = heartbeat
        self._wake_fds = dict(wake_fds)
        self._go_fd = go_fd

    def await_go(self, turn: Callable[[], None] = lambda: None) -> None:
        """Wait until the children are ready that this one comes after. What takes time and changes nothing is done
        before. `turn` is called every second."""
        while self._go_fd is not None and not select.select([self._go_fd], [], [], 1.0)[0]:
            turn()

    def refuse(self, text: str, *, of_device: bool = False) -> None:
        """Tell the supervisor why work cannot begin, cut to what a record takes."""
        while not self._reports.send(Report(self.name, os.getpid(), Refused(text, of_device))) and text:
            text = text[: len(text) // 2]

    def report(self, news: News) -> None:
        """Tell the supervisor."""
        self._reports.send(Report(self.name, os.getpid(), news))

    def beat(self, within_seconds: float) -> None:
        """Promise the supervisor the next turn of this loop within `within_seconds`."""
        self._heartbeat.expect(within_seconds)

    def wake_others(self) -> None:
        """Wake the workers: there is work."""
        for name, fd in self._wake_fds.items():
            if name != self.name:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(fd, 1)

    def wake_self(self) -> None:
        """Wake another thread of this child."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.wake_fd, 1)

    def take_wake(self) -> bool:
        """Whether somebody woke this child since the last call."""
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            return False
        return True


Target = Callable[[ChildLink, Any], int]
"""What a child runs, with its plan; returns its exit code."""
