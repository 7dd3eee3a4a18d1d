"""Reads .caffemodel and .binaryproto files, by featd's own reader of protobuf's wire format.

Real weights are hundreds of megabytes of packed floats. This reader gives them as views on
the file's bytes, without a Python object per number and without protobuf's own limits on size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from featd.errors import ModelError, where_to_look
from featd.net.mapped import copy_of
from featd.net.wire import BYTES, FIXED32, FIXED64, VARINT, WireError, fields, varint

Array: TypeAlias = npt.NDArray[np.float32]

_NET_LAYER: Final = 100
_NET_V1_LAYER: Final = 2
_NAMES: Final = {_NET_LAYER: (1, 7), _NET_V1_LAYER: (4, 6)}
"""Field numbers of (name, blobs) in the two forms of a layer."""
_V0_LAYER: Final = 1
_V0_NAMES: Final = (1, 50)
"""Field number of a V0 layer (of 2013) inside a V1 layer, and its field numbers of (name, blobs)."""
_MAX_AXES: Final = 32
_LOOKED_AT: Final = 1 << 16
# A definition in text form.
_DEFINITION: Final = re.compile(rb"(?:\xef\xbb\xbf)?[^\0-\x08]*?\b(?:layers?|input|input_shape)\s*[:{]")
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlob:
    """One array as a file holds it. `legacy` shapes are 4-D, padded with ones in front (Caffe before 2015)."""

    shape: tuple[int, ...]
    legacy: bool
    data: npt.NDArray[Any]
    """Flat, float32 or float64, perhaps unaligned: a view on the file's bytes."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Caffe's rule (Blob::ShapeEquals): equal; or, of a legacy blob, equal when padded to 4-D in front."""
        if self.legacy:
            return len(shape) <= 4 and (1,) * (4 - len(shape)) + tuple(shape) == self.shape
        return tuple(shape) == self.shape

    def array(self, shape: Sequence[int]) -> Array:
        """The numbers as an aligned float32 array of `shape`; copies only where it must."""
        flat = np.require(self.data, dtype=np.float32, requirements=["A", "C"])
        return flat.reshape(tuple(shape))


@dataclass(frozen=True, slots=True, eq=False)
class StoredLayer:
    """The arrays a file holds for one layer, in Caffe's order (weights, bias)."""

    name: str
    blobs: tuple[StoredBlob | None, ...]
    """None: the HDF5 file has no array at this index."""
    hdf5: bool = False


def read_weights(path: Path) -> tuple[str, list[StoredLayer]]:
    """The SHA-256 of a .caffemodel, in hex, and its layers, those without arrays too, in file order.

    The arrays are views on a copy of the file: the hash is that of what is used. ModelError names the file and what is
    wrong.
    """
    try:
        raw, sha256 = copy_of(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot read the weights: {error.strerror}{where_to_look(error)}") from None
    if raw[: len(_HDF5)].tobytes() == _HDF5:
        return sha256, _hdf5(raw, path)
    try:
        layers = list(_layers(raw))
    except WireError as error:
        _refuse_definition(raw, path)
        raise ModelError(f"{path}: not a whole .caffemodel: {error}: copy or download it again") from None
    if not layers:
        _refuse_definition(raw, path)
        raise ModelError(f"{path}: holds no layers: is this a .caffemodel?")
    return sha256, layers


def _refuse_definition(raw: memoryview, path: Path) -> None:
    if _DEFINITION.match(raw[:_LOOKED_AT]):
        raise ModelError(
            f"{path}: not weights but a net definition in text form (.prototxt), which belongs to `net`: `weights` is"
            " the .caffemodel"
        )


def name_of(raw: bytes) -> str:
    """A name in a definition or in weights as text. A byte that is not UTF-8 becomes \\xNN, so that names stay
    different from each other and can be written in a configuration."""
    return raw.decode("utf-8", "backslashreplace")


def _hdf5(raw: memoryview, path: Path) -> list[StoredLayer]:
    from featd.net import hdf5_weights  # HDF5 only where it is needed

    return [
        StoredLayer(
            name_of(name),
            tuple(
                None if array is None else StoredBlob(array.shape, False, array.ravel()) for array in arrays
            ),
            hdf5=True,
        )
        for name, arrays in hdf5_weights.read(raw, str(path))
    ]


def parse_binaryproto(raw: bytes) -> Array:
    """The array that a .binaryproto's bytes hold (a mean image), shaped as they say. ModelError as for weights."""
    try:
        blob = _blob(memoryview(raw))
    except WireError as error:
        raise ModelError(f"not a whole .binaryproto: {error}") from None
    if not blob.data.size:
        raise ModelError("holds no numbers: is this a .binaryproto?")
    return blob.array(blob.shape)


def _layers(view: memoryview) -> Iterator[StoredLayer]:
    for number, wire, _, payload in fields(view):
        if number in _NAMES and wire == BYTES:
            old = _v0(payload) if number == _NET_V1_LAYER else None
            yield _layer(payload, *_NAMES[number]) if old is None else _layer(old, *_V0_NAMES)


def _v0(view: memoryview) -> memoryview | None:
    return next(
        (below for number, wire, _, below in fields(view) if number == _V0_LAYER and wire == BYTES), None
    )


def _layer(view: memoryview, name_number: int, blobs_number: int) -> StoredLayer:
    name, blobs = "", []
    for field, wire, _, below in fields(view):
        if field == name_number and wire == BYTES:
            name = name_of(bytes(below))
        elif field == blobs_number and wire == BYTES:
            blobs.append(_blob(below))
    return StoredLayer(name, tuple(blobs))


def _blob(view: memoryview) -> StoredBlob:
    legacy: dict[int, int] = {}
    shape: list[int] = []
    singles: list[memoryview] = []
    doubles: list[memoryview] = []
    for number, wire, value, payload in fields(view):
        if number in (1, 2, 3, 4) and wire == VARINT:
            legacy[number] = value
        elif number == 7 and wire == BYTES:
            shape += _dims(payload)
        elif number == 5:
            singles.append(_numbers(payload, wire, FIXED32, 4))
        elif number == 8:
            doubles.append(_numbers(payload, wire, FIXED64, 8))
        if len(shape) > _MAX_AXES:
            raise WireError(f"an array has more than {_MAX_AXES} axes")
    data: npt.NDArray[Any] = _joined(doubles, "<f8") if doubles else _joined(singles, "<f4")
    dims = tuple(legacy.get(axis, 0) for axis in (1, 2, 3, 4)) if legacy else tuple(shape)
    count = math.prod(dims)
    if count != data.size:
        raise WireError(f"an array of shape {dims} holds {data.size:,} numbers instead of {count:,}")
    return StoredBlob(dims, bool(legacy), data)


def _numbers(payload: memoryview, wire: int, single: int, size: int) -> memoryview:
    if wire not in (single, BYTES) or len(payload) % size:
        raise WireError("an array is cut in the middle of a number")
    return payload


def _joined(parts: list[memoryview], dtype: str) -> npt.NDArray[Any]:
    # In real files a repeated field is packed in one part; the format also allows several parts, and unpacked ones.
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype)


def _dims(view: memoryview) -> list[int]:
    dims = []
    for number, wire, value, payload in fields(view):
        if number == 1 and wire == VARINT:
            dims.append(value)
        elif number == 1 and wire == BYTES:
            at = 0
            while at < len(payload):
                dim, at = varint(payload, at)
                dims.append(dim)
    return dims
