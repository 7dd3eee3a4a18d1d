"""Golden vectors: the vectors of built-in pictures, compared with those that the catalog holds: at each start, every
hour, and after a suspicious batch.

This finds a wrong mean, another channel order, a faulty device or a changed library before a row is claimed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from featd import clock, logs
from featd.engines.base import Vectors
from featd.errors import ConfigError, EngineError, first_line
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.variants import variants
from featd.processes.oom import is_out_of_memory
from featd.worker.model import Model, prepared_as

log = logs.get("worker")

T = TypeVar("T")

EVERY_SECONDS = 3600.0
"""How often a worker compares them while it works."""
FIRST_SECONDS = 60.0
"""The same, for a worker that found none in the catalog when it started."""
SAMPLED = 65_536
"""Numbers of a vector that are compared."""
LEASE_BATCHES = 4.0
"""A lease must last at least this many batches, or a renewal could come too late."""


class Golden:
    """Runs the golden pictures through one model, `batch` at a time. `beat` is called before each forward. Where memory
    is short, `batch` is halved."""

    def __init__(self, model: Model, batch: int) -> None:
        self.batch = batch
        self.beat: Callable[[], None] = lambda: None
        self._model = model
        self._seconds_each = 0.0
        """The time of a forward for each picture of the last `run`, which warms up the engine where it is the first."""

    def fit_batch(self, lease_seconds: float) -> float:
        """Make `batch` small enough that LEASE_BATCHES fit into a lease; returns the most seconds that a batch takes.

        After `run`, whose time tells how long a batch takes. Only where that comes near a lease is one timed.
        """
        seconds = self._seconds_each * self.batch
        while seconds * LEASE_BATCHES > lease_seconds:
            seconds = self._fitted(self._timed)
            if seconds * LEASE_BATCHES <= lease_seconds:
                return seconds
            if self.batch == 1:
                raise ConfigError(
                    f"workers.lease_seconds: one image takes {seconds:.1f} s here, and a lease must last four times"
                    f" as long: set it to at least {seconds * LEASE_BATCHES:.0f}"
                )
            self.batch //= 2
            log.warning(
                "batch_reduced",
                "a batch takes more than a quarter of a lease; using a smaller one",
                batch=self.batch,
            )
        return seconds

    def _timed(self) -> float:
        """The seconds that a batch takes."""
        eight = self._model.inputs(golden_pictures())
        pictures = np.resize(eight, (self.batch, *eight.shape[1:]))
        self._model.engine.forward(pictures)  # warms the engine up
        began = clock.monotonic()
        self._model.engine.forward(pictures)
        return clock.monotonic() - began

    def halve(self, error: Exception) -> None:
        """Use half the batch from now on: memory was short for it."""
        self.batch = max(1, self.batch // 2)
        log.warning(
            "memory_short",
            "the engine ran out of memory; going on with half the batch (a smaller workers.batch avoids this)",
            batch=self.batch,
            error=first_line(error),
        )

    def _fitted(self, run: Callable[[], T]) -> T:
        """What `run` returns, with a batch that memory is enough for."""
        while True:
            try:
                return run()
            except Exception as error:
                if self.batch == 1 or not is_out_of_memory(error):
                    raise
                self.halve(error)

    def run(self) -> dict[str, Vectors]:
        """The golden vectors as the model makes them now: blob -> float32 (8, at most SAMPLED). EngineError where they
        are not finite."""
        vectors = self._fitted(lambda: self._run(self._model))
        for blob, values in vectors.items():
            if not np.isfinite(values).all():
                raise EngineError(
                    "the net gives values that are not finite for the built-in pictures"
                    f" (blob {blob}): check the weights"
                )
        return vectors

    def check(self, stored: dict[str, Any], made: dict[str, Vectors]) -> None:
        """EngineError where `made`, the vectors as they are now, differ from `stored`; names the likeliest reason."""
        held = unpack(stored)
        tolerance = self._model.tolerance
        for blob, values in held.items():
            if blob not in made or made[blob].shape != values.shape:
                raise EngineError(
                    f"golden vectors: blob {blob!r} no longer has the shape that the catalog holds"
                )
        worst = max(held, key=lambda blob: distances(made[blob], held[blob]).max())
        differing = distances(made[worst], held[worst])
        if differing.max() <= tolerance:
            return
        raise EngineError(
            f"golden vectors: {np.count_nonzero(differing > tolerance)} of {len(differing)} built-in pictures give"
            f" other vectors than the catalog holds (blob {worst!r}, relative L2 up to {differing.max():.2g},"
            f" tolerance {tolerance:g}). Likely: {self._likely_reason(held, made)}."
            " This worker claims nothing until they agree; other vectors belong in another instance"
        )

    def _likely_reason(self, held: dict[str, Vectors], made: dict[str, Vectors]) -> str:
        """Try usual mistakes, the likeliest first, until one explains the difference. The model may be closed then."""
        tolerance = self._model.tolerance
        if _apart(self._run(self._model), made) > tolerance:
            return "the device gave different results for the same input: check its memory, temperature and driver"
        prepared = self._model.prepared()
        for mistake, spec in variants(prepared.preprocess):
            if _apart(self._run(prepared_as(prepared, spec)), held) <= tolerance:
                return f"another preprocessing: the catalog's vectors match {mistake}"
        return (
            "the device, the engine or one of its libraries has changed, since no usual mistake of the preprocessing"
            " explains the difference: go back to the earlier versions and hardware"
        )

    def _run(self, model: Model) -> dict[str, Vectors]:
        """The vectors of all golden pictures; every n-th number of very wide blobs, so that the catalog stays small."""
        pictures = model.inputs(golden_pictures())
        parts = []
        began = clock.monotonic()
        for at in range(0, len(pictures), self.batch):
            self.beat()
            parts.append(model.engine.forward(pictures[at : at + self.batch]))
        self._seconds_each = (clock.monotonic() - began) / len(pictures)
        return {
            blob: np.concatenate([part[blob] for part in parts])[:, :: -(-values.shape[1] // SAMPLED)]
            for blob, values in parts[0].items()
        }


def pack(vectors: dict[str, Vectors]) -> dict[str, Any]:
    """Golden vectors as JSON for the catalog's settings."""
    return {
        blob: {
            "shape": list(values.shape),
            "float32": base64.b64encode(values.astype("<f4").tobytes()).decode(),
        }
        for blob, values in vectors.items()
    }


def unpack(stored: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """What `pack` stored."""
    return {
        blob: np.frombuffer(base64.b64decode(entry["float32"]), "<f4").reshape(entry["shape"])
        for blob, entry in stored.items()
    }


def _apart(mine: dict[str, Vectors], held: dict[str, Vectors]) -> float:
    """The largest distance of any picture in any blob."""
    return max(float(distances(mine[blob], values).max()) for blob, values in held.items())


def distances(mine: npt.NDArray[np.float32], held: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """|mine - held| / |held| of each row, float64 (n,); infinite where `mine` is not finite."""
    difference = np.linalg.norm(mine.astype(np.float64) - held, axis=1)
    size = np.maximum(np.linalg.norm(held.astype(np.float64), axis=1), 1e-12)
    relative: npt.NDArray[np.float64] = np.nan_to_num(difference / size, nan=np.inf)
    return relative
