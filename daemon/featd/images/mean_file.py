"""Mean images on disk: NumPy's .npy and Caffe's .binaryproto."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.errors import ConfigError

_MOST_BYTES = 256 * 1024 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_mean(path: Path) -> npt.NDArray[np.float32]:
    """A mean as float32 (C, h, w); per-channel means come as (C, 1, 1). ConfigError names file and reason."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _blob(path.read_bytes())
        return _as_chw(values)
    except (OSError, ValueError, EOFError, struct.error, IndexError) as error:
        raise ConfigError(f"preprocess.mean: {path}: not a mean featd can use: {error}") from None


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


def _blob(data: bytes) -> npt.NDArray[np.float64]:
    """Caffe's BlobProto (caffe.proto): num=1 channels=2 height=3 width=4 data=5 shape=7 double_data=8."""
    legacy = {1: 1, 2: 1, 3: 1, 4: 1}
    shape: list[int] = []
    values: list[npt.NDArray[np.float64]] = []
    for field, kind, value in _fields(data):
        if field in legacy and isinstance(value, int):
            legacy[field] = value
        elif field in (5, 8) and isinstance(value, bytes):
            single = kind == _FIXED32 or (field == 5 and kind == _BYTES)
            values.append(np.frombuffer(value, "<f4" if single else "<f8").astype(np.float64))
        elif field == 7 and isinstance(value, bytes):
            for inner, _, dim in _fields(value):
                if inner == 1:
                    shape += [dim] if isinstance(dim, int) else _varints(dim)
    if not values:
        raise ValueError("no data in it: not a .binaryproto")
    shape = shape or [legacy[1], legacy[2], legacy[3], legacy[4]]
    flat = np.concatenate(values)
    if math.prod(shape) != flat.size:
        raise ValueError(f"{flat.size} values for a shape of {shape}")
    return flat.reshape(shape)


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field, wire type, value) of one protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, kind, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("not a protobuf message")
        if at + size > len(data):
            raise ValueError("it ends early")
        yield key >> 3, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("not a protobuf message")


def _varints(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found
