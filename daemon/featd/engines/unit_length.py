"""A wrapper around any engine: vectors of length 1."""

from __future__ import annotations

import numpy as np

from featd.engines.base import Batch, Engine, Vectors


class UnitLengthEngine:
    """Divides each vector that `inner` makes by its Euclidean length, worked out in double precision. A vector of zeros
    stays as it is."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name = inner.name
        self.device = inner.device
        self.parallel = inner.parallel
        self.input_shape = inner.input_shape
        self.blobs = inner.blobs

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        return {blob: unit_length(vectors) for blob, vectors in self.inner.forward(batch).items()}

    def close(self) -> None:
        self.inner.close()


def unit_length(vectors: Vectors) -> Vectors:
    """The vectors (n, d), float32, each divided by its length."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(lengths == 0, 1, lengths)[:, None]).astype(np.float32)
