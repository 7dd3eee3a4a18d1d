"""A wrapper around any engine: the mean vector of four corners, the centre, and their mirror images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featd.engines.base import Batch, Engine, Vectors, as_batch


class TenCropEngine:
    """Takes pictures larger than the net's input and runs `inner` ten times.

    The crops are `caffe.io.oversample`'s (python/caffe/io.py); the center's offset is `(size - crop) // 2`.
    Where `mean` is given, float32 (C, h, w) of the net's input, pictures come as raw pixels, and each crop,
    mirrored or not, becomes (crop - mean) times the factor of its channel: so do caffe.Classifier's. Caffe's own
    data transformer mirrors what the mean has been taken off: for that, give none and prepared pictures.
    """

    def __init__(
        self,
        inner: Engine,
        size: tuple[int, int],
        mean: npt.NDArray[np.float32] | None = None,
        factors: Sequence[np.float32] = (),
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self.device = inner.device
        self.parallel = inner.parallel
        self.input_shape = (inner.input_shape[0], *size)
        self.blobs = inner.blobs
        self._mean = mean
        self._factors = np.array(factors, np.float32)[:, None, None]

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """One vector per picture: the mean of ten, summed in double precision."""
        sums: dict[str, npt.NDArray[np.float64]] = {}
        for crops in self._crops(as_batch(batch, self.input_shape)):
            for blob, vectors in self.inner.forward(crops).items():
                if blob in sums:
                    sums[blob] += vectors
                else:
                    sums[blob] = vectors.astype(np.float64)
        return {blob: (total / 10).astype(np.float32) for blob, total in sums.items()}

    def close(self) -> None:
        self.inner.close()

    def _crops(self, batch: Batch) -> Iterator[Batch]:
        height, width = self.inner.input_shape[1:]
        down, right = self.input_shape[1] - height, self.input_shape[2] - width
        for top, left in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
            crops = batch[:, :, top : top + height, left : left + width]
            for one in (crops, crops[..., ::-1]):
                yield one if self._mean is None else (one - self._mean) * self._factors
