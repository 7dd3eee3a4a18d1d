"""The hands file: which images a worker and its decoders are processing now, readable after all of them are dead.

It is a small memory-mapped file per lease, `<store>/run/<host>/<lease token>.hands`. A SIGKILL loses no write to a
shared mapping. Every field is an aligned 8-byte word. Ids are written before the count or phase that makes them
valid, and the count or phase is cleared before ids change, so that a reader after a kill never sees a wrong id. The
file is kept until the end of the lease is recorded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featd.errors import StoreUnavailableError, reason

_MAGIC = int.from_bytes(b"FTDHAND1", "little")

# Words of the file: the head, then the batch's ids, then a record for each decoder.
_AT_MAGIC, _AT_DECODERS, _AT_BATCH, _AT_ESCALATED, _AT_FORWARD = range(5)
_HEAD_WORDS = 8
_PID, _IMAGE, _TICKET, _SINCE, _PHASE = range(5)
_DECODER_WORDS = 8
_WORD = 8
_MOST = 1 << 20

IDLE, HOLDS, ANSWERS = 0, 1, 2
"""Phases of a decoder: no image in hand; an image in hand; finished with it and sending its answer."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one decoder holds: image and ticket (the pool's number of the task), since when (monotonic seconds)."""

    index: int
    pid: int
    image_id: int
    ticket: int
    since: float
    phase: int


@dataclass(frozen=True, slots=True)
class HandsReport:
    """The content of a hands file: the batch in the net, each decoder's image, and whether the supervisor escalated."""

    forward: tuple[int, ...]
    decoders: tuple[Held, ...]
    escalated: bool

    @property
    def images(self) -> frozenset[int]:
        """Every image that was in hand."""
        return frozenset(self.forward) | {held.image_id for held in self.decoders}


class Hands:
    """The writing side. The worker writes the batch; each decoder process writes its own record."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._map = mapping
        self.ints = memoryview(mapping).cast("q")
        self.floats = memoryview(mapping).cast("d")
        self._decoders = self.ints[_AT_DECODERS]
        self._batch = self.ints[_AT_BATCH]

    @classmethod
    def create(cls, path: Path, decoders: int, batch: int) -> Hands:
        """Make the file (an older one of the same lease is emptied first), for `decoders` and batches of `batch`.
        StoreUnavailableError where it cannot be written, as on a full disk."""
        words = _HEAD_WORDS + batch + decoders * _DECODER_WORDS
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                # Allocated, not only sized: a write to a hole on a full disk would raise SIGBUS.
                os.posix_fallocate(fd, 0, words * _WORD)
                os.pwrite(fd, struct.pack("=3q", _MAGIC, decoders, batch), 0)
                return cls(mmap.mmap(fd, words * _WORD))
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreUnavailableError(f"{path}: cannot write it: {reason(error)}") from error

    @classmethod
    def open(cls, path: Path) -> Hands:
        """Map an existing file, as a decoder process does. OSError or ValueError where it is none."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if _shape(os.pread(fd, _HEAD_WORDS * _WORD, 0), os.fstat(fd).st_size) is None:
                raise ValueError(f"{path} is not a hands file")
            return cls(mmap.mmap(fd, 0))
        finally:
            os.close(fd)

    def hold_forward(self, image_ids: Sequence[int]) -> None:
        """These images are in the net now. ValueError if they are more than the file has room for."""
        if len(image_ids) > self._batch:
            raise ValueError(f"{len(image_ids)} images do not fit a hands file of {self._batch}")
        self.ints[_AT_FORWARD] = 0
        for at, image_id in enumerate(image_ids):
            self.ints[_HEAD_WORDS + at] = image_id
        self.ints[_AT_FORWARD] = len(image_ids)

    def drop_forward(self) -> None:
        """No image is in the net."""
        self.ints[_AT_FORWARD] = 0

    def decoder_ready(self, index: int, pid: int) -> None:
        """The decoder `index` is process `pid`, booted, with nothing in hand. pid 0: there is no process."""
        at = self._record(index)
        self.ints[at + _PHASE] = IDLE
        self.ints[at + _PID] = pid

    def decoder_takes(self, index: int, image_id: int, now: float, ticket: int = 0) -> None:
        """The decoder `index` has this image in hand since `now` (monotonic seconds)."""
        at = self._record(index)
        self.ints[at + _PHASE] = IDLE
        self.ints[at + _IMAGE] = image_id
        self.ints[at + _TICKET] = ticket
        self.floats[at + _SINCE] = now
        self.ints[at + _PHASE] = HOLDS

    def decoder_answers(self, index: int) -> None:
        """The decoder `index` has finished its image and is sending its answer, which may take any time."""
        self.ints[self._record(index) + _PHASE] = ANSWERS

    def decoder_drops(self, index: int) -> None:
        """The decoder `index` has nothing in hand."""
        self.ints[self._record(index) + _PHASE] = IDLE

    def decoder_pid(self, index: int) -> int:
        """The process that last called itself ready as decoder `index`; 0 if none."""
        return self.ints[self._record(index) + _PID]

    def held_by(self, index: int) -> Held | None:
        """What the decoder `index` has in hand; exact once it is dead, a moment's look while it lives."""
        return _held(self.ints, self.floats, self._record(index), index)

    def close(self) -> None:
        """Unmap. The file stays."""
        self.ints.release()
        self.floats.release()
        self._map.close()

    def __enter__(self) -> Hands:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _record(self, index: int) -> int:
        if not 0 <= index < self._decoders:
            raise ValueError(f"no decoder {index} in a hands file for {self._decoders}")
        return _HEAD_WORDS + self._batch + index * _DECODER_WORDS


def mark_escalated(path: Path) -> None:
    """Note that the supervisor is about to kill this worker for being slow to stop: its images are not to blame.

    Never raises, since it is part of stopping. Without a file there is nothing to note.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_size >= _HEAD_WORDS * _WORD:
                os.pwrite(fd, struct.pack("=q", 1), _AT_ESCALATED * _WORD)
        finally:
            os.close(fd)


def read_hands(path: Path) -> HandsReport | None:
    """The content of a hands file, or None where it is missing, incomplete, or not a hands file. Never raises."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = os.pread(fd, _MOST, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    shape = _shape(data[: _HEAD_WORDS * _WORD], len(data))
    if shape is None:
        return None
    decoders, batch = shape
    words = memoryview(data[: (_HEAD_WORDS + batch + decoders * _DECODER_WORDS) * _WORD])
    ints, floats = words.cast("q"), words.cast("d")
    count = min(max(ints[_AT_FORWARD], 0), batch)
    first = _HEAD_WORDS + batch
    held = (_held(ints, floats, first + index * _DECODER_WORDS, index) for index in range(decoders))
    return HandsReport(
        tuple(ints[_HEAD_WORDS : _HEAD_WORDS + count]),
        tuple(one for one in held if one is not None),
        bool(ints[_AT_ESCALATED]),
    )


def _shape(head: bytes, size: int) -> tuple[int, int] | None:
    if len(head) < _HEAD_WORDS * _WORD:
        return None
    magic, decoders, batch = struct.unpack_from("=3q", head)
    words = _HEAD_WORDS + batch + decoders * _DECODER_WORDS
    if magic != _MAGIC or decoders < 0 or batch < 0 or words * _WORD > min(size, _MOST):
        return None
    return decoders, batch


def _held(ints: memoryview[int], floats: memoryview[float], at: int, index: int) -> Held | None:
    phase = ints[at + _PHASE]
    if phase not in (HOLDS, ANSWERS):
        return None
    held = Held(index, ints[at + _PID], ints[at + _IMAGE], ints[at + _TICKET], floats[at + _SINCE], phase)
    # A living writer may have changed the record between these reads: then it holds something newer.
    return held if ints[at + _PHASE] == phase and ints[at + _TICKET] == held.ticket else None
