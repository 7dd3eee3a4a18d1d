"""The worker's decoders: spawned, fed, watched and replaced from the worker's main thread; pixels come back
through one anonymous memory file.

Each decoder has a socket of its own with some tasks ahead in it, so that all decoders go on while the worker's main
thread is inside a long forward. The hands file says which image each decoder is working on, so that the image is known
when a decoder dies.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd import logs
from featd.clock import monotonic
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.wire import (
    PACKET_BYTES,
    Decoded,
    Result,
    RootOffline,
    Setup,
    clean,
    pack_task,
    unpack_answer,
)
from featd.errors import DecoderError
from featd.preprocess.spec import PreprocessSpec
from featd.processes.hands import HOLDS, Hands, Held
from featd.processes.oom import OomWatch
from featd.processes.signals import OWN, name_of
from featd.roots import RootState, root_state
from featd.states import ClaimedImage, Failure, Kind

COMMAND = (sys.executable, "-P", "-m", "featd.decoders.process")
MOST_DEATHS_WITHOUT_IMAGE = 3
"""The worker gives up after this many decoders in a row died without an image in hand."""
_LAST_WORDS_BYTES = 2_000
_CLOSE_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_OOM_SECONDS = 1.0
_BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logs.get("decoders")


@dataclass(slots=True)
class _Decoder:
    """One decoder process. `tickets`: sent to it and not answered, oldest first."""

    index: int
    process: subprocess.Popen[bytes]
    pidfd: int
    stderr: int
    tasks: socket.socket
    tickets: deque[int] = field(default_factory=deque)
    overdue: tuple[int, float] | None = None  # (ticket, when first found overdue)


class DecoderPool:
    """`decoders` processes that fill the slots of `trays`.

    trays: in shared memory, uint8 (trays, batch, H, W, C): pixels for `featd.preprocess.apply.prepare`; or where they
    are no whole numbers, prepared, float32 (trays, batch, C, H, W). slot = tray * batch + place in the batch. A slot
    belongs to the decoders from `submit` until its result came out of `poll`. One thread uses a pool: the one
    that made it, which must be the process's main thread (a decoder dies with the thread that spawned it).
    """

    trays: npt.NDArray[Any]

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
        command: Sequence[str] = COMMAND,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """Spawn the decoders. `roots`: root -> whether links in it are followed; `places`: root -> its folder, where it
        is called by another name; `command`: the child's argv, for tests. The hands file is made at `hands_path` and
        stays there. OSError or DecoderError."""
        self._command = tuple(command)
        self._roots = dict(roots)
        self._places = dict(places or {})
        self._timeout = timeout_seconds
        # A decoder's share of a batch and one more: while one batch is in the net, the next gets ready.
        self._ahead = -(-batch // decoders) + 1
        self._decoders: list[_Decoder] = []
        self._images: dict[int, ClaimedImage] = {}  # by ticket
        self._slots: dict[int, int] = {}  # ticket -> slot
        self._unsent: deque[int] = deque()
        self._last_ticket = 0
        self._deaths_without_image = 0
        self._oom = OomWatch(_OOM_SECONDS)
        self._look_seconds = min(_LOOK_SECONDS, timeout_seconds / 8)
        self._next_look = 0.0
        self._poller = select.poll()
        self._hands_path = hands_path
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OPENCV_LOG_LEVEL": "WARNING",  # at this level OpenCV reports a partial TIFF
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(spec.max_pixels),
        }
        with contextlib.ExitStack() as undo:
            self.hands = Hands.create(hands_path, decoders, trays * batch)
            undo.callback(self.hands.close)
            crash_point(CrashPoint.HANDS_CREATED)
            one, dtype = (spec.pixels_shape, "u1") if spec.whole_numbers else (spec.shape, "f4")
            shape = (trays * batch, *one)
            self._slots_fd = os.memfd_create("featd-trays", os.MFD_CLOEXEC)
            undo.callback(os.close, self._slots_fd)
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            os.ftruncate(self._slots_fd, size)
            self._map = mmap.mmap(self._slots_fd, size)
            self.trays = np.frombuffer(self._map, dtype).reshape(trays, batch, *one)
            self._setup_fd = os.memfd_create("featd-setup", os.MFD_CLOEXEC)
            undo.callback(os.close, self._setup_fd)
            os.write(self._setup_fd, Setup(self._roots, shape, dtype, spec, self._places).to_bytes())
            undo.callback(self._end_decoders)
            for index in range(decoders):
                self._spawn(index)
            self._undo = undo.pop_all()

    # The worker's side: submit, poll, close.

    def submit(self, slot: int, image: ClaimedImage) -> None:
        """Have `image` decoded into `slot`. Never blocks. ValueError: the slot is taken, or the root unknown."""
        if slot in self._slots.values():
            raise ValueError(f"slot {slot} is still being filled")
        if not 0 <= slot < self.trays.shape[0] * self.trays.shape[1]:
            raise ValueError(f"no slot {slot} in trays of {self.trays.shape[:2]}")
        if image.root not in self._roots:
            raise ValueError(f"no root {image.root!r} among those of this pool")
        self._last_ticket += 1
        self._images[self._last_ticket] = image
        self._slots[self._last_ticket] = slot
        self._unsent.append(self._last_ticket)
        self._feed()

    @property
    def pending(self) -> int:
        """Images submitted whose result has not come out of `poll`."""
        return len(self._images)

    def poll(self, timeout_seconds: float) -> list[tuple[int, Result]]:
        """(slot, result) of each image that is finished now; if there is none, waits up to `timeout_seconds` for one.
        Replaces decoders that died or hang. DecoderError: decoders die one after another without an image in hand.
        """
        deadline = monotonic() + timeout_seconds
        while True:
            self._feed()
            seconds = deadline - monotonic()
            if self._images:  # one of them may become overdue
                seconds = min(seconds, self._look_seconds)
            ready = {fd for fd, _ in self._poller.poll(max(seconds, 0.0) * 1000)}
            results = [result for decoder in self._decoders for result in self._drain(decoder)]
            now = monotonic()
            results += self._supervise(now, ready)
            if results or now >= deadline:
                return results

    def fill(self, images: Sequence[ClaimedImage]) -> tuple[list[int], dict[int, str]]:
        """Have the images decoded into the first slots, in their order, and wait for that: the slots of those that are;
        and for each of the others, by its slot, why not. For who has nothing else to do. DecoderError."""
        for slot, image in enumerate(images):
            self.submit(slot, image)
        good: list[int] = []
        problems: dict[int, str] = {}
        while self.pending:
            for slot, result in self.poll(1.0):
                if isinstance(result, Decoded):
                    good.append(slot)
                else:
                    problems[slot] = result.message if isinstance(result, Failure) else "its root is offline"
        return sorted(good), problems

    def close(self) -> None:
        """End the decoders and free everything but the hands file. May be called twice."""
        self._undo.close()
        self.trays = self.trays[:0, :0].copy()
        with contextlib.suppress(BufferError):  # the caller still looks at a tray: freed with its array
            self._map.close()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Packets.

    def _feed(self) -> None:
        """Send the waiting tasks, each to the decoder that has the fewest, as long as one has room."""
        while self._unsent:
            decoder = min(self._decoders, key=lambda one: len(one.tickets))
            if len(decoder.tickets) >= self._ahead:
                return
            ticket = self._unsent[0]
            try:
                decoder.tasks.send(pack_task(ticket, self._slots[ticket], self._images[ticket]))
            except OSError:  # full of long paths, or dead: its next answer or its death calls this again
                return
            decoder.tickets.append(self._unsent.popleft())

    def _drain(self, decoder: _Decoder) -> list[tuple[int, Result]]:
        """What a decoder has answered."""
        results: list[tuple[int, Result]] = []
        while True:
            try:
                packet = decoder.tasks.recv(PACKET_BYTES)
            except OSError:
                return results
            if not packet:
                return results
            ticket, result = unpack_answer(packet, self._images)
            decoder.tickets.remove(ticket)
            self._deaths_without_image = 0
            results.append((self._finish(ticket), result))

    def _finish(self, ticket: int) -> int:
        """Forget a ticket; returns its slot."""
        del self._images[ticket]
        return self._slots.pop(ticket)

    # Processes.

    def _spawn(self, index: int) -> None:
        stderr = os.memfd_create("featd-last-words", os.MFD_CLOEXEC)
        # The decoder truncates the file after each image: without O_APPEND a hole would precede the next words.
        fcntl.fcntl(stderr, fcntl.F_SETFL, os.O_APPEND)
        tasks, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tasks.setblocking(False)
        argv = [
            *self._command,
            f"--tasks={end.fileno()}",
            f"--setup={self._setup_fd}",
            f"--slots={self._slots_fd}",
            f"--index={index}",
            f"--hands={self._hands_path}",
            f"--parent={os.getpid()}",
        ]
        # A signal to the group must not end a decoder that does not ignore it yet: blocked signals stay blocked
        # across exec, and the decoder unblocks them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._environment,
                pass_fds=(end.fileno(), self._setup_fd, self._slots_fd),
            )
        except OSError as error:
            os.close(stderr)
            tasks.close()
            raise DecoderError(f"cannot start a decoder ({self._command[0]}): {error}") from error
        finally:
            end.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        decoder = _Decoder(index, process, os.pidfd_open(process.pid), stderr, tasks)
        self._decoders.append(decoder)
        self._poller.register(decoder.pidfd, select.POLLIN)
        self._poller.register(decoder.tasks, select.POLLIN)

    def _supervise(self, now: float, ready: set[int]) -> list[tuple[int, Result]]:
        """Replace decoders whose pidfd is `ready` (they died); every now and then, look for those that hang."""
        results: list[tuple[int, Result]] = []
        for decoder in [one for one in self._decoders if one.pidfd in ready]:
            results += self._bury(decoder, None)
        if now >= self._next_look:
            self._next_look = now + self._look_seconds
            for decoder in list(self._decoders):
                if (held := self._overdue(decoder, now)) is not None:
                    decoder.process.kill()
                    results += self._bury(decoder, held)
            self._oom.look(now)
        return results

    def _overdue(self, decoder: _Decoder, now: float) -> Held | None:
        """What a decoder has held for too long. It must be found overdue twice, a quarter of the timeout (at most a
        second) apart: after all processes were stopped (SIGSTOP, a suspended machine), every decoder is late at first.
        """
        held = self.hands.held_by(decoder.index)
        if held is None or held.phase != HOLDS or now - held.since <= self._timeout:
            decoder.overdue = None
            return None
        if decoder.overdue is None or decoder.overdue[0] != held.ticket:
            decoder.overdue = (held.ticket, now)
            return None
        return held if now - decoder.overdue[1] >= min(1.0, self._timeout / 4) else None

    def _bury(self, decoder: _Decoder, overdue: Held | None) -> list[tuple[int, Result]]:
        """Report the image that a dead decoder held, give its other tasks to others, and start another decoder."""
        status = decoder.process.wait()
        results = self._drain(decoder)
        held = self.hands.held_by(decoder.index)
        booted = self.hands.decoder_pid(decoder.index) == decoder.process.pid
        words = _last_words(decoder.stderr)
        away = ""
        self._forget(decoder)
        if held is not None and held.ticket in decoder.tickets:
            # A decoder that finished the overdue image just before it was killed had begun another image, which is
            # not to blame.
            if overdue is None or held.ticket == overdue.ticket:
                decoder.tickets.remove(held.ticket)
                image = self._images[held.ticket]
                if overdue is not None and self._is_offline(image.root):
                    away = image.root
                    results.append((self._finish(held.ticket), RootOffline(image)))
                else:
                    kind, message = self._blame(status, words, overdue is not None)
                    results.append((self._finish(held.ticket), Failure(image, kind, clean(message))))
        elif overdue is None and (not booted or status != -signal.SIGKILL):
            self._deaths_without_image += 1
        self._unsent.extendleft(reversed(decoder.tickets))
        # The other images of a root that does not answer would wait as long.
        for ticket in [one for one in self._unsent if self._images[one].root == away]:
            self._unsent.remove(ticket)
            image = self._images[ticket]
            results.append((self._finish(ticket), RootOffline(image)))
        log.warning(
            "decoder_died",
            "a decoder died; starting another one",
            index=decoder.index,
            pid=decoder.process.pid,
            how=_how(status),
            image_id=held.image_id if held else None,
            last_words=words,
        )
        if self._deaths_without_image >= MOST_DEATHS_WITHOUT_IMAGE:
            raise DecoderError(
                f"{self._deaths_without_image} decoders in a row died without an image in hand ({_how(status)}): "
                f"{words or 'no last words'}"
            )
        self._spawn(decoder.index)
        return results

    def _is_offline(self, root: str) -> bool:
        return root_state(Path(self._places.get(root, root))) is not RootState.ONLINE

    def _forget(self, decoder: _Decoder) -> None:
        self._decoders.remove(decoder)
        self._poller.unregister(decoder.pidfd)
        self._poller.unregister(decoder.tasks)
        self.hands.decoder_ready(decoder.index, 0)
        os.close(decoder.pidfd)
        os.close(decoder.stderr)
        decoder.tasks.close()

    def _blame(self, status: int, words: str, overdue: bool) -> tuple[Kind, str]:
        """What a decoder's death means for the image that it held."""
        said = f": {words}" if words else ""
        if overdue:
            return Kind.DECODE_TIMEOUT, f"not decoded within {self._timeout:g} s: the decoder was killed"
        if status == -signal.SIGKILL and self._oom.has_killed():
            return Kind.CRASH, "the decoder was killed by the kernel: out of memory"
        if status == -signal.SIGKILL:
            return Kind.KILLED, f"the decoder was killed from outside (SIGKILL){said}"
        if status < 0 and -status not in OWN:
            return Kind.KILLED, f"the decoder was killed by {_how(status)}{said}"
        return Kind.CRASH, f"the decoder died: {_how(status)}{said}"

    def _end_decoders(self) -> None:
        """End of file on their tasks; a decoder that has not ended after a second is killed."""
        for decoder in self._decoders:
            with contextlib.suppress(OSError):
                decoder.tasks.shutdown(socket.SHUT_RDWR)
        deadline = monotonic() + _CLOSE_SECONDS
        for decoder in self._decoders:
            try:
                decoder.process.wait(max(deadline - monotonic(), 0.001))
            except subprocess.TimeoutExpired:
                decoder.process.kill()
                decoder.process.wait()
        for decoder in list(self._decoders):
            self._forget(decoder)


def _last_words(fd: int) -> str:
    size = os.fstat(fd).st_size
    return (
        os.pread(fd, _LAST_WORDS_BYTES, max(size - _LAST_WORDS_BYTES, 0)).decode("utf-8", "replace").strip()
    )


def _how(status: int) -> str:
    return name_of(-status) if status < 0 else f"exit status {status}"
