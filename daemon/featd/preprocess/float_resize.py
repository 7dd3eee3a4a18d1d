"""Linear resizing as pycaffe does it: `caffe.io.resize_image`, that is `skimage.transform.resize(order=1,
mode="constant")` without smoothing, of a picture stretched to 0..1 and back (python/caffe/io.py).

As with OpenCV, samples are at the centres of pixels, but nothing is rounded to whole grey levels. At the edge of an
enlarged picture, the values outside are not those of the edge but 0 of the stretched picture, that is, the least
value of all channels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# With up to this many source pixels per result pixel, OpenCV's resize of the whole picture in floats (0.4 ms for
# 500x375) is faster than picking the four neighbours of each pixel (1 ms for any source).
_WHOLE_UP_TO = 8


def resize_float(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.float32]:
    """`pixels`, (H, W) or (H, W, C) of uint8 or float32, as float32 (height, width) or (height, width, C)."""
    rows, columns = pixels.shape[:2]
    if rows * columns <= _WHOLE_UP_TO * height * width:
        whole = pixels.astype(np.float32, copy=False)
        resized = cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR).reshape(
            height, width, *pixels.shape[2:]
        )
    else:
        resized = _picked(pixels, height, width, np.float32)
    return _darkened(resized, pixels, np.float32)


def resize_mean(mean: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """A mean image (C, h, w) as `Transformer.set_mean` brings it to the net's input: (C, height, width).

    The result is part of the fingerprint, so that every platform must get the same bits: double precision, one
    operation at a time, and no fused loops of a library.
    """
    pixels = mean.transpose(1, 2, 0)
    resized = _darkened(_picked(pixels, height, width, np.float64), pixels, np.float64)
    return np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32)


def _neighbours(
    source: int, target: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each of `target` pixels: its two neighbours in `source`, the second one's weight, and the weight of
    both together that lies inside."""
    at = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(at).astype(np.intp)
    share = at - first
    inside = np.where(first < 0, share, np.where(first + 1 >= source, 1 - share, 1.0))
    return np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), share, inside


def _picked(pixels: npt.NDArray[Any], height: int, width: int, dtype: Any) -> npt.NDArray[Any]:
    """Interpolate between the four neighbours; beyond the edge the values of the edge continue."""
    depth = pixels.shape[2] if pixels.ndim == 3 else 1
    flat = pixels.reshape(pixels.shape[0], -1)
    upper, lower, down, _ = _neighbours(pixels.shape[0], height)
    left, right, across, _ = _neighbours(pixels.shape[1], width)
    places = np.arange(depth)
    lefts, rights = ((side[:, None] * depth + places).ravel() for side in (left, right))
    across = np.repeat(across, depth).astype(dtype)

    def between(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        one, other = rows.take(lefts, 1).astype(dtype), rows.take(rights, 1).astype(dtype)
        other -= one
        other *= across
        one += other
        return one

    above, below = between(flat[upper]), between(flat[lower])
    below -= above
    below *= down.astype(dtype)[:, None]
    above += below
    return above.reshape(height, width, *pixels.shape[2:])


def _darkened(resized: npt.NDArray[Any], pixels: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """Give the part of each pixel that lies outside the source the source's least value instead of its edge's."""
    height, width = resized.shape[:2]
    if height <= pixels.shape[0] and width <= pixels.shape[1]:
        return resized
    down, across = _neighbours(pixels.shape[0], height)[3], _neighbours(pixels.shape[1], width)[3]
    inside = (down[:, None] * across).astype(dtype).reshape(height, width, *(1,) * (pixels.ndim - 2))
    least = dtype(pixels.min())
    resized = resized - least
    resized *= inside
    resized += least
    return resized
