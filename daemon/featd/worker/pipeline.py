"""The worker's main loop: claimed images into trays, full trays through the net, vectors to the writer.

A tray is a batch in shared memory. While one is in the net, the decoders fill the others. Engine and decoders are
used by this thread only: Caffe's device is set per thread, and decoders die with the thread that started them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np

from featd import logs
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.pool import DecoderPool
from featd.decoders.wire import Decoded, Hashed, Result, RootOffline
from featd.engines.base import Batch, Engine, Vectors
from featd.errors import EngineError, first_line
from featd.processes.oom import is_out_of_memory
from featd.shards.write import fits
from featd.states import Failure, Kind
from featd.worker.claims import Claims
from featd.worker.read_errors import DOUBTFUL, ReadErrors
from featd.worker.shares import Shares
from featd.worker.writer import Flush, Item, VectorBatch, Writer

log = logs.get("worker")

TRAYS = 2
"""One that is ready, one being filled; besides those in the net."""
IDLE_SECONDS = 0.1
"""Between two checks for new work while there is none."""
DECODE_WAIT_SECONDS = 0.25
HANG_FACTOR = 50.0
MIN_HANG_SECONDS = 60.0
ZERO_BATCH = 8
"""All-zero vectors of this many pictures, none of a single colour, are a reason to test the device."""


@dataclass(slots=True)
class Tray:
    """One batch being filled. Of its places, some are `waiting` for a decoder, and some have a `decoded` picture."""

    index: int
    waiting: set[int] = field(default_factory=set)
    decoded: dict[int, Decoded] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.waiting or self.decoded)


@dataclass(slots=True)
class Flight:
    """A tray whose pictures a thread of its own is running through the net, all at once. `decoded`: in the order of
    `batch`."""

    tray: Tray
    decoded: Sequence[Decoded]
    batch: Batch
    vectors: Future[dict[str, Vectors]]


class Pipeline:
    """`step` takes what the decoders have finished, gives them new images, and runs at most one batch. `beat` is called
    before each forward and at each turn."""

    def __init__(
        self,
        engine: Engine,
        pool: DecoderPool,
        claims: Claims,
        writer: Writer,
        shares: Shares,
        *,
        dtype: str,
        settle_seconds: dict[str, float],
        beat: Callable[[], None],
        check_golden: Callable[[], None],
        find_done: Callable[[str], str | None],
        find_moved: Callable[[Sequence[Hashed]], Sequence[VectorBatch]],
        halve: Callable[[Exception], int],
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._claims = claims
        self._writer = writer
        self._shares = shares
        self._dtype = dtype
        self._settle_seconds = settle_seconds
        self._beat = beat
        self._check_golden = check_golden
        self._read_errors = ReadErrors(self._put, find_done, places)
        self._find_moved = find_moved
        self._halve = halve
        trays, self._batch = pool.trays.shape[:2]
        self._at_once = self._batch
        """Images that go through the net at once: fewer than a tray where memory is short."""
        self._trays = [
            Tray(index) for index in range(trays)
        ]  # in order of their first image; empty ones last
        self._flights: deque[Flight] = deque()
        self._parallel = engine.parallel
        """Batches that are in the net at a time."""
        self._threads = ThreadPoolExecutor(engine.parallel, "forward") if engine.parallel > 1 else None
        self._flushed = True
        self._hashed: list[tuple[int, Hashed]] = []
        """Files that were read, and whose content an image may have had that is gone. Each has its place in a tray."""

    @property
    def idle(self) -> bool:
        """Whether no image is in a tray or in doubt."""
        return not any(self._trays) and not self._flights and not self._read_errors

    def step(self) -> int:
        """One turn; returns how many images went through the net."""
        self._beat()
        self._read_errors.step()
        self._shares.doubted = self._read_errors.rounds
        self._feed()
        tray = self._next_tray()
        if tray is None and not self._flights:
            self._flush_when_idle()
            self._take(self._wait_for_decoders())
            return 0
        self._take(self._pool.poll(0.0))
        if tray is None:
            return self._land()
        if self._may_fly(tray):
            self._start(tray)
            return self._land() if len(self._flights) == self._parallel else 0
        # Beside another batch, a picture that kills the process could not be told from those of that batch.
        forwarded = sum(self._land() for _ in range(len(self._flights)))
        return forwarded + self._run(tray)

    def finish(self) -> None:
        """Wait for the batches that are in the net."""
        while self._flights:
            self._land()

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    # Claimed images into trays

    def _feed(self) -> None:
        """Fill every free place with a claimed image, in order of trays."""
        for tray in self._trays:
            for place in range(self._batch):
                if place in tray.waiting or place in tray.decoded:
                    continue
                image = self._claims.take()
                if image is None:
                    return
                tray.waiting.add(place)
                self._flushed = False
                self._pool.submit(tray.index * self._batch + place, image)

    def _wait_for_decoders(self) -> list[tuple[int, Result]]:
        if self._pool.pending:
            with self._shares.spend("decode"):
                return self._pool.poll(DECODE_WAIT_SECONDS)
        with self._shares.spend("wait"):
            return self._pool.poll(IDLE_SECONDS)

    def _take(self, results: Iterable[tuple[int, Result]]) -> None:
        """Sort the decoders' results: pictures into the trays, everything else to the writer."""
        for slot, result in results:
            if isinstance(result, Hashed):
                self._read_errors.read(result.image)
                self._hashed.append((slot, result))
                continue
            tray, place = self._free(slot)
            match result:
                case Decoded(image):
                    tray.decoded[place] = result
                    self._read_errors.read(image)
                case RootOffline(image):
                    self._claims.give_back(image)
                case Failure(image, Kind.READ_CHANGED):
                    self._put(replace(result, settle_seconds=self._settle_seconds[image.root]))
                case Failure(image, kind) if kind in DOUBTFUL:
                    self._read_errors.add(result)
                case Failure(image, Kind.CRASH | Kind.KILLED):
                    self._put(result)
                case _:
                    self._read_errors.read(result.image)
                    self._put(result)
            if not tray:
                self._put_last(tray)
        # Many at once: to ask the catalog takes longer than to read a small file.
        if len(self._hashed) >= 2 * self._batch or not self._pool.pending:
            self._copy()

    def _copy(self) -> None:
        """Files that were moved get the vectors that they had; the others are decoded."""
        if not self._hashed:
            return
        hashed, self._hashed = self._hashed, []
        with self._shares.spend("decode"):
            batches = self._find_moved([one for _, one in hashed])
        copied = {one.image.id for batch in batches for one in batch.files}
        for slot, one in hashed:
            if one.image.id not in copied:
                self._pool.submit(slot, one.image._replace(seeks=False))
                continue
            tray, _ = self._free(slot)
            if not tray:
                self._put_last(tray)
        for batch in batches:
            self._shares.count(len(batch.files))
            self._put(batch)

    def _free(self, slot: int) -> tuple[Tray, int]:
        """Its tray and place, which waits no more."""
        index, place = divmod(slot, self._batch)
        tray = next(tray for tray in self._trays if tray.index == index)
        tray.waiting.remove(place)
        return tray, place

    def _put_last(self, tray: Tray) -> None:
        """Move a tray that has become empty behind the others."""
        self._trays.remove(tray)
        self._trays.append(tray)

    def _next_tray(self) -> Tray | None:
        """A full tray; or one whose decoders are done, if no more images come to fill it."""
        for tray in self._trays:
            if len(tray.decoded) == self._batch:
                return tray
        if not self._claims.exhausted:
            return None
        return next((tray for tray in self._trays if tray.decoded and not tray.waiting), None)

    def _flush_when_idle(self) -> None:
        """Seal soon if there is nothing to claim and nothing under way, so that the last images are done soon."""
        if self.idle and self._claims.exhausted and not self._flushed:
            self._writer.put(Flush())
            self._flushed = True

    # A tray through the net

    def _may_fly(self, tray: Tray) -> bool:
        """Whether the tray goes through the net as one batch, in a thread of its own."""
        return (
            self._parallel > 1
            and len(tray.decoded) <= self._at_once
            and not any(one.image.suspect for one in tray.decoded.values())
        )

    def _start(self, tray: Tray) -> None:
        """Begin a forward. Until it has landed, the tray takes no other pictures."""
        assert self._threads is not None
        self._trays.remove(tray)
        places = sorted(tray.decoded)
        pictures = self._pool.trays[tray.index]
        batch = pictures if len(places) == self._batch else pictures[places]
        decoded = [tray.decoded[place] for place in places]
        self._beat()
        self._pool.hands.hold_forward(self._flying() + [one.image.id for one in decoded])
        crash_point(CrashPoint.FORWARD)
        self._flights.append(Flight(tray, decoded, batch, self._threads.submit(self._engine.forward, batch)))

    def _flying(self) -> list[int]:
        return [one.image.id for flight in self._flights for one in flight.decoded]

    def _land(self) -> int:
        """Wait for the oldest forward; returns how many images it had. Where it failed, they run again, with nothing
        beside them."""
        flight = self._flights[0]
        self._beat()
        with self._shares.spend("forward"):
            error = flight.vectors.exception()
        self._flights.popleft()
        self._pool.hands.hold_forward(self._flying())
        self._trays.append(flight.tray)
        if error is not None:
            wait([other.vectors for other in self._flights])
            # The other batch that was in the net may have failed in the same way.
            if self._parallel > 1 and isinstance(error, Exception) and is_out_of_memory(error):
                log.warning(
                    "memory_short_for_two",
                    "the engine ran out of memory with two batches in the net; going on with one at a time",
                    error=first_line(error),
                )
                self._parallel = 1
            return self._run(flight.tray)
        crash_point(CrashPoint.FORWARDED)
        vectors = flight.vectors.result()
        self._doubt_zeros(flight.batch, vectors)
        self._emit(flight.decoded, vectors)
        flight.tray.decoded.clear()
        return len(flight.decoded)

    def _run(self, tray: Tray) -> int:
        """Run a tray while nothing else is in the net; returns how many images it had."""
        pictures = self._pool.trays[tray.index]
        places = sorted(tray.decoded)
        together = [place for place in places if not tray.decoded[place].image.suspect]
        alone = [place for place in places if tray.decoded[place].image.suspect]
        for group in ([together] if together else []) + [[place] for place in alone]:
            # A full tray goes into the net without a copy; a group with gaps is copied together first.
            batch = pictures if len(group) == self._batch else pictures[group]
            self._forward([tray.decoded[place] for place in group], batch)
        tray.decoded.clear()
        self._put_last(tray)
        return len(places)

    def _forward(self, decoded: Sequence[Decoded], batch: Batch) -> None:
        at = 0
        while at < len(decoded):
            part = slice(at, at + self._at_once)
            if self._forward_part(decoded[part], batch[part]):
                at = part.stop

    def _forward_part(self, decoded: Sequence[Decoded], batch: Batch) -> bool:
        """False where memory was short: then fewer images are to be tried."""
        try:
            vectors = self._engine_forward(decoded, batch)
        except Exception as error:
            if len(decoded) > 1 and is_out_of_memory(error):
                self._at_once = self._halve(error)
                return False
            log.warning("batch_failed", "batch failed; running its images one by one", error=str(error))
            self._one_by_one(decoded, batch, error)
            return True
        crash_point(CrashPoint.FORWARDED)
        self._doubt_zeros(batch, vectors)
        self._emit(decoded, vectors)
        return True

    def _engine_forward(self, decoded: Sequence[Decoded], batch: Batch) -> dict[str, Vectors]:
        self._beat()
        with self._shares.spend("forward"):
            self._pool.hands.hold_forward([one.image.id for one in decoded])
            crash_point(CrashPoint.FORWARD)
            try:
                return self._engine.forward(batch)
            finally:
                self._pool.hands.drop_forward()

    def _one_by_one(self, decoded: Sequence[Decoded], batch: Batch, error: Exception) -> None:
        """Find the images that make the engine fail. The golden pictures show whether the engine itself is faulty."""
        failures: list[Failure] = []
        for at, one in enumerate(decoded):
            try:
                vectors = self._engine_forward([one], batch[at : at + 1])
            except Exception as own:
                failures.append(Failure(one.image, Kind.EXTRACT_ERROR, str(own) or repr(own)))
                continue
            self._emit([one], vectors)
        if failures:
            # The device may have failed between two of them: then no image is charged.
            try:
                self._check_golden()
            except Exception as sick:
                raise EngineError(
                    f"the engine also fails on the built-in pictures: {sick} (first error: {error})"
                ) from sick
        for failure in failures:
            self._put(failure)

    def _emit(self, decoded: Sequence[Decoded], vectors: dict[str, Vectors]) -> None:
        """Hand vectors to the writer. A vector that is not finite fails its image and no other."""
        self._shares.count(len(decoded))
        finite = {blob: fits(values, self._dtype) for blob, values in vectors.items()}
        sound = np.logical_and.reduce(list(finite.values()))
        for at in np.flatnonzero(~sound).tolist():
            blobs = ", ".join(blob for blob, mask in finite.items() if not mask[at])
            message = f"the vector has NaN or infinity (as {self._dtype}) in blob {blobs}"
            self._put(Failure(decoded[at].image, Kind.EXTRACT_NOT_FINITE, message))
        if not sound.all():
            kept = np.flatnonzero(sound).tolist()
            decoded = [decoded[at] for at in kept]
            vectors = {blob: values[kept] for blob, values in vectors.items()}
        if decoded:
            self._put(VectorBatch(decoded, vectors))

    def _doubt_zeros(self, batch: Batch, vectors: dict[str, Vectors]) -> None:
        """Test the device after a whole batch of zero vectors. A single blank page may give zeros."""
        first = next(iter(vectors.values()))
        if len(batch) < ZERO_BATCH or first.any():
            return
        plane = (1, 2) if batch.dtype == np.uint8 else (2, 3)
        of_one_colour = (batch.max(axis=plane) == batch.min(axis=plane)).all(axis=1)
        if not of_one_colour.any():
            log.warning("zero_vectors", "all vectors of a batch are zero; checking the golden vectors")
            self._check_golden()

    def _put(self, item: Item) -> None:
        with self._shares.spend("write"):
            self._writer.put(item)


def hang_limit(batch_seconds: float) -> float:
    """Seconds without progress after which a worker hangs, if its batches take `batch_seconds`."""
    return max(MIN_HANG_SECONDS, HANG_FACTOR * batch_seconds)
