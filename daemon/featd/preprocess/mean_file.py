"""Mean images on disk: NumPy's .npy and Caffe's .binaryproto."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.errors import ConfigError, ModelError, reason
from featd.net.caffemodel import parse_binaryproto
from featd.paths import read_regular

_MOST_BYTES = 256 * 1024 * 1024


def read_mean(path: Path) -> npt.NDArray[np.float32]:
    """A mean as float32 (C, h, w); per-channel means come as (C, 1, 1). ConfigError names file and reason."""
    try:
        data = read_regular(path, _MOST_BYTES)
        values = _read_npy(data) if path.suffix == ".npy" else parse_binaryproto(data)
        return _as_chw(values)
    except (OSError, ValueError, ModelError) as error:
        raise ConfigError(f"preprocess.mean: {path}: not a usable mean: {reason(error)}") from None


def _read_npy(data: bytes) -> Any:
    """NumPy parses the header with Python's parser and allocates what it claims, so that any error may occur."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"not a complete .npy file of numbers ({type(error).__name__})") from None


def _as_chw(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ValueError("its values are not numbers")
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 1:
        values = values[:, None, None]
    elif values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"its shape is {values.shape}, not (channels, height, width)")
    mean = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(mean).all():
        raise ValueError("it holds values that are not finite")
    return mean
