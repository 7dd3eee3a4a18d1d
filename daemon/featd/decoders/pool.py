"""The worker's decoders: spawned, fed, watched and replaced from the worker's main thread; pixels come back
through one anonymous memory file.

All decoders read the same socket, so that they go on pulling while the worker's Python is inside a long forward
(pycaffe holds the GIL). What each has in hand stands in the hands file, so that a death names its image.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from featd import logs
from featd.clock import monotonic
from featd.decoders.wire import (
    PACKET_BYTES,
    Decoded,
    DecodeTask,
    NotDecoded,
    Result,
    Setup,
    Unchanged,
    clean,
    pack_task,
    unpack_answer,
    unpack_task,
)
from featd.errors import EngineError
from featd.images.read import MAX_FILE_BYTES
from featd.preprocess.spec import PreprocessSpec
from featd.processes.hands import HOLDS, Hands, Held
from featd.processes.oom import OomWatch
from featd.processes.signals import OWN
from featd.states import Kind

__all__ = ["DecodeTask", "Decoded", "DecoderPool", "NotDecoded", "Result", "Unchanged"]

COMMAND = (sys.executable, "-P", "-m", "featd.decoders.process")
MOST_BARREN_DEATHS = 3
_LAST_WORDS_BYTES = 2_000
_SETTLE_SECONDS = 0.25
_CLOSE_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_OOM_SECONDS = 1.0
_BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logs.get("decoders")


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    pidfd: int
    stderr: int
    overdue: tuple[int, float] | None = None  # (ticket, when first found overdue)


@dataclass(slots=True)
class _Pending:
    slot: int
    task: DecodeTask
    sent: bool = False


class DecoderPool:
    """`decoders` processes that fill the slots of `trays`.

    trays: float32 (trays, batch, C, H, W) in shared memory; slot = tray * batch + place in the batch. A slot
    belongs to the decoders from `submit` until its result came out of `poll`. One thread uses a pool: the one
    that made it, which must be the process's main thread (a decoder dies with the thread that spawned it).
    """

    trays: npt.NDArray[np.float32]

    def __init__(
        self,
        spec: PreprocessSpec,
        roots: Mapping[str, bool],
        *,
        decoders: int,
        trays: int,
        batch: int,
        hands_path: Path,
        timeout_seconds: float = 60.0,
        max_bytes: int = MAX_FILE_BYTES,
        command: Sequence[str] | None = None,
    ) -> None:
        """Spawn the decoders. `roots`: folder -> whether links in it are followed; `command`: the child's argv,
        for tests. The hands file is made at `hands_path` and stays there. OSError or EngineError."""
        self._command = tuple(command or COMMAND)
        self._roots = dict(roots)
        self._timeout = timeout_seconds
        self._children: list[_Child] = []
        self._pending: dict[int, _Pending] = {}  # by ticket
        self._tickets: dict[int, int] = {}  # slot -> ticket
        self._unsent: deque[int] = deque()
        self._last_ticket = 0
        self._barren = 0
        self._lost: tuple[float, set[int]] | None = None  # (when to look, tickets that nobody seems to hold)
        self._oom = OomWatch(_OOM_SECONDS)
        self._look_seconds = min(_LOOK_SECONDS, timeout_seconds / 8)
        self._next_look = 0.0
        self._poller = select.poll()
        self._max_pixels = spec.max_pixels
        self._hands_path = hands_path
        self._closed = False
        with contextlib.ExitStack() as undo:
            self.hands = Hands.create(hands_path, decoders, batch)
            undo.callback(self.hands.close)
            shape = (trays * batch, *spec.shape)
            self._slots_fd = os.memfd_create("featd-trays", os.MFD_CLOEXEC)
            undo.callback(os.close, self._slots_fd)
            size = int(np.prod(shape, dtype=np.int64)) * 4
            os.ftruncate(self._slots_fd, size)
            self._map = mmap.mmap(self._slots_fd, size)
            self.trays = np.frombuffer(self._map, np.float32).reshape(trays, batch, *spec.shape)
            self._setup_fd = os.memfd_create("featd-setup", os.MFD_CLOEXEC)
            undo.callback(os.close, self._setup_fd)
            os.write(self._setup_fd, Setup(self._roots, shape, max_bytes, spec.to_bytes()).to_bytes())
            self._requests, self._requests_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._answers, self._answers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for one in (self._requests, self._requests_end, self._answers, self._answers_end):
                undo.callback(one.close)
            self._requests.setblocking(False)
            self._answers.setblocking(False)
            self._poller.register(self._answers, select.POLLIN)
            self._poller.register(self._requests, 0)
            undo.callback(self._end_children)
            for index in range(decoders):
                self._spawn(index)
            self._undo = undo.pop_all()

    # The worker's side: submit, poll, close.

    def submit(self, slot: int, task: DecodeTask) -> None:
        """Have `task` decoded into `slot`. Never blocks. ValueError: the slot is taken, or the root unknown."""
        if slot in self._tickets:
            raise ValueError(f"slot {slot} is still being filled")
        if not 0 <= slot < self.trays.shape[0] * self.trays.shape[1]:
            raise ValueError(f"no slot {slot} in trays of {self.trays.shape[:2]}")
        if task.root not in self._roots:
            raise ValueError(f"no root {task.root!r} among those of this pool")
        self._last_ticket += 1
        self._pending[self._last_ticket] = _Pending(slot, task)
        self._tickets[slot] = self._last_ticket
        self._unsent.append(self._last_ticket)
        self._flush()

    @property
    def pending(self) -> int:
        """Tasks submitted whose result has not come out of `poll`."""
        return len(self._pending)

    def poll(self, timeout_seconds: float) -> list[Result]:
        """Results that are there, else those of the next `timeout_seconds`; replaces decoders that died or hang.

        EngineError: decoders die again and again without any image to blame.
        """
        deadline = monotonic() + timeout_seconds
        while True:
            self._flush()
            ready = self._wait(deadline - monotonic())
            results = self._drain()
            now = monotonic()
            results += self._supervise(now, ready)
            if results or now >= deadline:
                return results

    def close(self) -> None:
        """End the decoders and give everything back but the hands file. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._undo.close()
        self.trays = np.empty((0, 0, *self.trays.shape[2:]), np.float32)
        with contextlib.suppress(BufferError):  # the caller still looks at a tray: freed with its array
            self._map.close()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # Packets.

    def _flush(self) -> None:
        while self._unsent:
            ticket = self._unsent[0]
            pending = self._pending[ticket]
            try:
                self._requests.send(pack_task(ticket, pending.slot, pending.task))
            except BlockingIOError:
                return
            pending.sent = True
            self._unsent.popleft()

    def _drain(self) -> list[Result]:
        results: list[Result] = []
        while True:
            try:
                packet = self._answers.recv(PACKET_BYTES)
            except BlockingIOError:
                return results
            ticket, result = unpack_answer(packet)
            if self._finish(ticket):
                self._barren = 0
                results.append(result)

    def _finish(self, ticket: int) -> bool:
        """Take the ticket off the books; False where it was not on them."""
        pending = self._pending.pop(ticket, None)
        if pending is None:
            return False
        del self._tickets[pending.slot]
        return True

    def _take_back(self) -> None:
        """Fetch the tasks that no decoder has pulled yet out of the socket again, to be sent anew in order."""
        unread: list[int] = []
        while True:
            try:
                packet = self._requests_end.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            ticket = unpack_task(packet)[0]
            self._pending[ticket].sent = False
            unread.append(ticket)
        self._unsent.extendleft(reversed(unread))

    def _wait(self, seconds: float) -> set[int]:
        """The descriptors on which something happened within `seconds`: answers, room for tasks, deaths."""
        self._poller.modify(self._requests, select.POLLOUT if self._unsent else 0)
        if self._pending:  # somebody may become overdue, or stay lost
            seconds = min(seconds, self._look_seconds)
        return {fd for fd, _ in self._poller.poll(max(seconds, 0.0) * 1000)}

    # Processes.

    def _spawn(self, index: int) -> None:
        stderr = os.memfd_create("featd-last-words", os.MFD_CLOEXEC)
        # The decoder truncates it after each image: without O_APPEND the next words would stand behind a hole.
        fcntl.fcntl(stderr, fcntl.F_SETFL, os.O_APPEND)
        try:
            argv = [
                *self._command,
                f"--requests={self._requests_end.fileno()}",
                f"--answers={self._answers_end.fileno()}",
                f"--setup={self._setup_fd}",
                f"--slots={self._slots_fd}",
                f"--index={index}",
                f"--hands={self._hands_path}",
                f"--parent={os.getpid()}",
            ]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "OPENCV_LOG_LEVEL": "WARNING",  # where a partial TIFF is told
                "OPENCV_IO_MAX_IMAGE_PIXELS": str(self._max_pixels),
            }
            # A signal to the group must not end a decoder that has not come to ignoring it: blocked signals
            # stay blocked across exec, and the decoder unblocks them.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=environment,
                    pass_fds=(
                        self._requests_end.fileno(),
                        self._answers_end.fileno(),
                        self._setup_fd,
                        self._slots_fd,
                    ),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except OSError as error:
            os.close(stderr)
            raise EngineError(f"cannot start a decoder ({self._command[0]}): {error}") from error
        child = _Child(index, process, os.pidfd_open(process.pid), stderr)
        self._children.append(child)
        self._poller.register(child.pidfd, select.POLLIN)

    def _supervise(self, now: float, ready: set[int]) -> list[Result]:
        """Replace decoders whose pidfd is `ready` (they died); every now and then, look for the other troubles."""
        results: list[Result] = []
        for child in [child for child in self._children if child.pidfd in ready]:
            child.process.wait()
            results += self._bury(child, now, None)
        if now >= self._next_look:
            self._next_look = now + self._look_seconds
            for child in list(self._children):
                if (held := self._overdue(child, now)) is not None:
                    child.process.kill()
                    child.process.wait()
                    results += self._bury(child, now, held)
            if self._lost is not None and now >= self._lost[0]:
                results += self._search()
            self._oom.look(now)
        return results

    def _overdue(self, child: _Child, now: float) -> Held | None:
        """What a decoder has held for too long. Found so twice, a quarter of the timeout (at most a second)
        apart: after a stop of the whole tree (SIGSTOP, a suspended machine) everybody looks late at first."""
        held = self.hands.held_by(child.index)
        if held is None or held.phase != HOLDS or now - held.since <= self._timeout:
            child.overdue = None
            return None
        if child.overdue is None or child.overdue[0] != held.ticket:
            child.overdue = (held.ticket, now)
            return None
        return held if now - child.overdue[1] >= min(1.0, self._timeout / 4) else None

    def _bury(self, child: _Child, now: float, overdue: Held | None) -> list[Result]:
        """Report what a dead decoder held, and put another in its place."""
        results = self._drain()  # what it had answered is answered
        held = self.hands.held_by(child.index)
        booted = self.hands.decoder_pid(child.index) == child.process.pid
        status = child.process.returncode
        words = _last_words(child.stderr)
        self._forget(child)
        if held is not None and held.ticket in self._pending:
            if overdue is None:
                results.append(self._blame(held, status, words))
            elif held.ticket == overdue.ticket:
                message = f"not decoded within {self._timeout:g} s: its decoder was killed"
                results.append(self._give_up(held.ticket, Kind.DECODE_TIMEOUT, message))
            else:  # it finished just before it was killed, and had begun another, which is not to blame
                self._resubmit(held.ticket)
        else:
            self._take_back()
            missing = self._nobodys()
            if missing:
                self._lost = (now + _SETTLE_SECONDS, missing)
            if overdue is None and (not booted or status != -signal.SIGKILL):
                self._barren += 1
        log.warning(
            "decoder_died",
            "another takes its place",
            index=child.index,
            pid=child.process.pid,
            how=_how(status),
            image_id=held.image_id if held else None,
            last_words=words,
        )
        if self._barren >= MOST_BARREN_DEATHS:
            raise EngineError(
                f"decoders die without an image to blame ({self._barren} in a row, {_how(status)}): "
                f"{words or 'no last words'}"
            )
        self._spawn(child.index)
        return results

    def _forget(self, child: _Child) -> None:
        self._children.remove(child)
        self._poller.unregister(child.pidfd)
        self.hands.decoder_ready(child.index, 0)
        os.close(child.pidfd)
        os.close(child.stderr)

    def _blame(self, held: Held, status: int, words: str) -> NotDecoded:
        said = f": {words}" if words else ""
        if status == -signal.SIGKILL:
            if self._oom.has_killed():
                return self._give_up(
                    held.ticket, Kind.CRASH, "its decoder was killed by the kernel: out of memory"
                )
            return self._give_up(
                held.ticket, Kind.KILLED, f"its decoder was killed from outside (SIGKILL){said}"
            )
        if status < 0 and -status not in OWN:
            return self._give_up(held.ticket, Kind.KILLED, f"its decoder was killed by {_how(status)}{said}")
        return self._give_up(held.ticket, Kind.CRASH, f"its decoder died: {_how(status)}{said}")

    def _give_up(self, ticket: int, kind: Kind, message: str) -> NotDecoded:
        pending = self._pending[ticket]
        self._finish(ticket)
        return NotDecoded(pending.slot, pending.task.image_id, kind, clean(message))

    def _resubmit(self, ticket: int) -> None:
        self._pending[ticket].sent = False
        self._unsent.append(ticket)

    # Tasks that died with a decoder between its recv and its word in the hands file.

    def _nobodys(self) -> set[int]:
        """Tickets that were sent, are not in the socket, and that no living decoder has published. After a
        moment only those are left that died with their decoder."""
        held = {held.ticket for child in self._children if (held := self.hands.held_by(child.index))}
        return {ticket for ticket, pending in self._pending.items() if pending.sent} - held

    def _search(self) -> list[Result]:
        """Send lost tasks again. A decoder that has nothing published may just have pulled one: to be certain
        that no slot is ever filled by two, the idle ones are replaced first (this is once in a blue moon)."""
        assert self._lost is not None
        suspects = self._lost[1]
        self._lost = None
        results = self._drain()
        if not suspects & self._nobodys():
            return results
        for child in list(self._children):
            if self.hands.held_by(child.index) is None:
                child.process.kill()
                child.process.wait()
                results += self._drain()
                held = self.hands.held_by(child.index)
                self._forget(child)
                if held is not None and held.ticket in self._pending:  # taken between our look and our kill
                    self._resubmit(held.ticket)
                self._spawn(child.index)
        self._take_back()
        for ticket in sorted(suspects & self._nobodys()):
            self._resubmit(ticket)
        return results

    def _end_children(self) -> None:
        """EOF on their requests; what has not ended after a second is killed."""
        self._requests.close()
        self._answers.close()
        deadline = monotonic() + _CLOSE_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(deadline - monotonic(), 0.001))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        for child in list(self._children):
            self._forget(child)


def _last_words(fd: int) -> str:
    size = os.fstat(fd).st_size
    return (
        os.pread(fd, _LAST_WORDS_BYTES, max(size - _LAST_WORDS_BYTES, 0)).decode("utf-8", "replace").strip()
    )


def _how(status: int) -> str:
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"
