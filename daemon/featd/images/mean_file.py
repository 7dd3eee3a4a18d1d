"""Mean images on disk: NumPy's .npy and Caffe's .binaryproto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.errors import ConfigError, ModelError, reason
from featd.net.caffemodel import read_binaryproto

_MOST_BYTES = 256 * 1024 * 1024


def read_mean(path: Path) -> npt.NDArray[np.float32]:
    """A mean as float32 (C, h, w); per-channel means come as (C, 1, 1). ConfigError names file and reason."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else read_binaryproto(path)
        return _as_chw(values)
    except (OSError, ValueError, EOFError, ModelError) as error:
        raise ConfigError(f"preprocess.mean: {path}: not a mean featd can use: {reason(error)}") from None


def _as_chw(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ValueError("its values are no numbers")
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
