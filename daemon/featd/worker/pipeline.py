"""The worker's main loop: claimed images into trays, full trays through the net, vectors to the writer.

A tray is a batch in shared memory. While one is in the net, the decoders fill the others. Engine and decoders are
used by this thread only: Caffe's device is set per thread, and decoders die with the thread that started them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from featd import logs
from featd.decoders.pool import DecoderPool
from featd.decoders.wire import Decoded, Result, RootOffline
from featd.engines.base import Batch, Engine, Vectors
from featd.errors import EngineError
from featd.processes.link import ChildLink
from featd.shards.write import fits
from featd.states import ClaimedImage, Failure, Kind, Unchanged
from featd.worker.claims import Claims
from featd.worker.shares import Shares
from featd.worker.writer import Flush, VectorBatch, Writer

log = logs.get("worker")

TRAYS = 3
"""One in the net, one ready behind it, one being filled."""
IDLE_SECONDS = 0.1
"""Between two checks for new work while there is none."""
DECODE_WAIT_SECONDS = 0.25
HANG_FACTOR = 50.0
MIN_HANG_SECONDS = 60.0
ZERO_BATCH = 8
"""All-zero vectors of this many pictures, none of a single colour, are a reason to test the device."""


@dataclass(slots=True)
class Tray:
    """One batch being filled. `ready`: place in the batch -> content hash of the picture there."""

    index: int
    images: dict[int, ClaimedImage] = field(default_factory=dict)
    ready: dict[int, str] = field(default_factory=dict)

    @property
    def outstanding(self) -> int:
        return len(self.images) - len(self.ready)


class Pipeline:
    """`step` takes what the decoders have finished, gives them new images, and runs at most one batch."""

    def __init__(
        self,
        engine: Engine,
        pool: DecoderPool,
        claims: Claims,
        writer: Writer,
        link: ChildLink,
        shares: Shares,
        *,
        dtype: str,
        hang_seconds: float,
        settle_seconds: dict[str, float],
        check_golden: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._claims = claims
        self._writer = writer
        self._link = link
        self._shares = shares
        self._dtype = dtype
        self._settle_seconds = settle_seconds
        self._check_golden = check_golden
        self._batch = pool.trays.shape[1]
        self._hang_seconds = hang_seconds
        self._free = [Tray(index) for index in range(pool.trays.shape[0])]
        self._filling: list[Tray] = []
        self._flushed = True

    @property
    def idle(self) -> bool:
        """Whether no image is in a tray."""
        return not self._filling

    def step(self) -> int:
        """One turn; returns how many images went through the net."""
        self._link.beat(self._hang_seconds)
        self._feed()
        tray = self._next_tray()
        if tray is None:
            self._flush_when_idle()
            self._take(self._wait_for_decoders())
            return 0
        self._take(self._pool.poll(0.0))
        self._filling.remove(tray)
        forwarded = self._run(tray)
        tray.images.clear()
        tray.ready.clear()
        self._free.append(tray)
        return forwarded

    # Claimed images into trays

    def _feed(self) -> None:
        """Fill every free place with a claimed image, in order of trays."""
        for tray in (*self._filling, *self._free):
            if len(tray.images) == self._batch:
                continue
            for place in range(self._batch):
                if place in tray.images:
                    continue
                image = self._claims.take()
                if image is None:
                    return
                if tray in self._free:
                    self._free.remove(tray)
                    self._filling.append(tray)
                tray.images[place] = image
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
            index, place = divmod(slot, self._batch)
            tray = next(tray for tray in self._filling if tray.index == index)
            match result:
                case Decoded():
                    tray.ready[place] = result.content
                    continue
                case RootOffline(image):
                    self._claims.give_back(image)
                case Failure(image, Kind.READ_CHANGED):
                    self._put(replace(result, settle_seconds=self._settle_seconds[image.root]))
                case _:
                    self._put(result)
            del tray.images[place]
            if not tray.images:
                self._filling.remove(tray)
                self._free.append(tray)

    def _next_tray(self) -> Tray | None:
        """A full tray; or one whose decoders are done, if no more images come to fill it."""
        for tray in self._filling:
            if len(tray.ready) == self._batch:
                return tray
        if not self._claims.exhausted:
            return None
        return next((tray for tray in self._filling if tray.ready and not tray.outstanding), None)

    def _flush_when_idle(self) -> None:
        """Seal now if there is nothing to claim and nothing under way, so that the last images are done at once."""
        if self.idle and self._claims.exhausted and not self._flushed:
            self._writer.put(Flush())
            self._flushed = True

    # A tray through the net

    def _run(self, tray: Tray) -> int:
        places = sorted(tray.ready)
        pictures = self._pool.trays[tray.index]
        together = [place for place in places if not tray.images[place].suspect]
        alone = [place for place in places if tray.images[place].suspect]
        for group in ([together] if together else []) + [[place] for place in alone]:
            # A full tray goes into the net without a copy; a group with gaps is copied together first.
            batch = pictures if len(group) == self._batch else pictures[group]
            self._forward(
                [tray.images[place] for place in group], [tray.ready[place] for place in group], batch
            )
        return len(places)

    def _forward(self, images: Sequence[ClaimedImage], contents: Sequence[str], batch: Batch) -> None:
        try:
            vectors = self._engine_forward(images, batch)
        except Exception as error:
            log.warning("batch_failed", "batch failed; running its images one by one", error=str(error))
            self._one_by_one(images, contents, batch, error)
            return
        self._doubt_zeros(batch, vectors)
        self._shares.count(len(images))
        self._emit(images, contents, vectors)

    def _engine_forward(self, images: Sequence[ClaimedImage], batch: Batch) -> dict[str, Vectors]:
        self._link.beat(self._hang_seconds)
        with self._shares.spend("forward"):
            self._pool.hands.hold_forward([image.id for image in images])
            try:
                return self._engine.forward(batch)
            finally:
                self._pool.hands.drop_forward()

    def _one_by_one(
        self, images: Sequence[ClaimedImage], contents: Sequence[str], batch: Batch, error: Exception
    ) -> None:
        """Find the images that make the engine fail. The golden pictures show whether the engine itself is faulty."""
        failures: list[Failure] = []
        for at, image in enumerate(images):
            try:
                vectors = self._engine_forward([image], batch[at : at + 1])
            except Exception as own:
                failures.append(Failure(image, Kind.EXTRACT_ERROR, str(own) or repr(own)))
                continue
            self._shares.count(1)
            self._emit([image], [contents[at]], vectors)
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

    def _emit(
        self, images: Sequence[ClaimedImage], contents: Sequence[str], vectors: dict[str, Vectors]
    ) -> None:
        """Hand vectors to the writer. A vector that is not finite fails its image and no other."""
        sound = np.logical_and.reduce([fits(values, self._dtype) for values in vectors.values()])
        for at in np.flatnonzero(~sound).tolist():
            self._put(Failure(images[at], Kind.EXTRACT_NOT_FINITE, self._not_finite(vectors, at)))
        if not sound.all():
            kept = np.flatnonzero(sound).tolist()
            images = [images[at] for at in kept]
            contents = [contents[at] for at in kept]
            vectors = {blob: values[kept] for blob, values in vectors.items()}
        if images:
            with self._shares.spend("write"):
                self._writer.put(VectorBatch(images, contents, vectors))

    def _not_finite(self, vectors: dict[str, Vectors], at: int) -> str:
        blobs = [blob for blob, values in vectors.items() if not fits(values[at : at + 1], self._dtype)[0]]
        return f"the vector has NaN or infinity (as {self._dtype}) in blob {', '.join(blobs)}"

    def _doubt_zeros(self, batch: Batch, vectors: dict[str, Vectors]) -> None:
        """Test the device after a whole batch of zero vectors. A single blank page may give zeros."""
        first = next(iter(vectors.values()))
        if len(batch) >= ZERO_BATCH and not first.any() and not _of_one_colour(batch).any():
            log.warning("zero_vectors", "all vectors of a batch are zero; checking the golden vectors")
            self._check_golden()

    def _put(self, item: Failure | Unchanged) -> None:
        with self._shares.spend("write"):
            self._writer.put(item)


def hang_limit(batch_seconds: float) -> float:
    """Seconds without progress after which a worker hangs, if its batches take `batch_seconds`."""
    return max(MIN_HANG_SECONDS, HANG_FACTOR * batch_seconds)


def _of_one_colour(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which pictures (n, C, H, W) have one value per channel: a mask (n,)."""
    flat = batch.reshape(len(batch), batch.shape[1], -1)
    mask: npt.NDArray[np.bool_] = (flat.max(axis=2) == flat.min(axis=2)).all(axis=1)
    return mask
