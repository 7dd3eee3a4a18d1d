"""A wrapper around an engine that takes prepared pictures: takes pixels."""

from __future__ import annotations

import numpy as np

from featd.engines.base import Batch, Engine, Vectors, as_batch
from featd.preprocess.apply import prepare
from featd.preprocess.spec import PreprocessSpec


class PixelsEngine:
    """Prepares pictures in the worker, batch by batch, where no graph does it: for real Caffe, nets that take float16,
    and ten crops."""

    def __init__(self, inner: Engine, spec: PreprocessSpec) -> None:
        self.inner = inner
        self.name = inner.name
        self.device = inner.device
        self.parallel = inner.parallel
        self.input_shape = spec.pixels_shape
        self.blobs = inner.blobs
        self._spec = spec

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """`batch`: uint8 (n, H, W, C)."""
        batch = as_batch(batch, self.input_shape, np.uint8)
        prepared = np.empty((len(batch), *self._spec.shape), np.float32)
        for pixels, out in zip(batch, prepared, strict=True):
            prepare(pixels, self._spec, out)
        return self.inner.forward(prepared)

    def close(self) -> None:
        self.inner.close()
