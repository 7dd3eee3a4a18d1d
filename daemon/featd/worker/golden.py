"""Golden vectors: what this net makes of built-in pictures, compared at each boot with what it once made.

A wrong mean, another channel order, a sick device or a changed library shows here, before a row is claimed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featd import clock
from featd.engines.base import Batch, Vectors
from featd.errors import EngineError
from featd.images.golden import golden_pictures
from featd.images.preprocess import apply
from featd.worker.model import Model

TOLERANCE = 1e-3
"""Relative L2 distance: engines and devices agree within 1e-4 on the deepest nets; a mistake makes 1e-1."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Golden vectors, and how long a full batch of pictures took."""

    vectors: dict[str, Vectors]
    batch_seconds: float


def golden_batch(model: Model, batch: int) -> Batch:
    """float32 (batch, C, H, W): the golden pictures over and over."""
    pictures = golden_pictures()
    out = np.empty((batch, *model.preprocess.shape), np.float32)
    for at in range(batch):
        if at < len(pictures):
            apply(pictures[at], model.preprocess, out[at])
        else:
            out[at] = out[at % len(pictures)]
    return out


def run_golden(model: Model, batch: int) -> Timed:
    """Run a batch twice: the first warms the engine up, the second is timed."""
    count = len(golden_pictures())
    pictures = golden_batch(model, max(batch, count))
    vectors = model.engine.forward(pictures[:count])
    for blob, values in vectors.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"the net makes values that are not finite of the built-in pictures (blob {blob}): check the weights"
            )
    model.engine.forward(pictures[:batch])
    began = clock.monotonic()
    model.engine.forward(pictures[:batch])
    return Timed(vectors, clock.monotonic() - began)


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


def check(stored: dict[str, Any] | None, made: dict[str, Vectors]) -> None:
    """EngineError where this engine makes other vectors of the golden pictures than the catalog holds."""
    if stored is None:
        return
    for blob, held in unpack(stored).items():
        mine = made.get(blob)
        if mine is None or mine.shape != held.shape:
            raise EngineError(
                f"golden vectors: the net no longer makes blob {blob!r} as the catalog holds it"
            )
        distance = relative_l2(mine, held)
        if distance > TOLERANCE:
            raise EngineError(
                f"golden vectors: blob {blob!r} of the built-in pictures differs by {distance:.2g} (relative L2,"
                f" tolerance {TOLERANCE:g}) from what this catalog's first worker made: the device or a library"
                " computes something else now; nothing was claimed"
            )


def relative_l2(mine: npt.NDArray[np.float32], held: npt.NDArray[np.float32]) -> float:
    """|mine - held| / |held|, worst row."""
    difference = np.linalg.norm(mine.astype(np.float64) - held, axis=1)
    size = np.maximum(np.linalg.norm(held.astype(np.float64), axis=1), 1e-12)
    return float((difference / size).max())
