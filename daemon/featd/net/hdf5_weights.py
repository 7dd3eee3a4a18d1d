"""Reads .caffemodel.h5: Caffe's HDF5 layout, /data/LAYER/INDEX. Links out of the file are not followed.

External links, external storage and virtual datasets make a file read others (or give zeros where those are not);
soft links may. Real Caffe follows them all, so featd reads these files itself and hands Caffe the numbers.
"""

from __future__ import annotations

import io
import math
import mmap
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from featd.errors import ModelError, first_line

_MOST_LAYERS: Final = 100_000
_MOST_BLOBS: Final = 64
_EXPANDS: Final = 1100
"""Limit of the compression: the best filter of HDF5, deflate, reaches at most 1,032."""

Array = npt.NDArray[Any]


def read(raw: memoryview, source: str) -> list[tuple[bytes, list[Array | None]]]:
    """(layer, its arrays by index) of a file's bytes; None where an index is left out (a shared array).

    ModelError names the file and what is wrong.
    """
    try:
        # A mapping can be read like a file.
        file_like = raw.obj if isinstance(raw.obj, mmap.mmap) else io.BytesIO(raw)
        with h5py.File(file_like, "r") as file:
            return _Reader(source, raw).layers(file)
    except ModelError:
        raise
    except Exception as error:  # of a damaged file: OSError, KeyError, ValueError, RuntimeError
        raise ModelError(
            f"{source}: not a whole .caffemodel.h5: {first_line(error)}: copy or download it again"
        ) from None


class _Reader:
    def __init__(self, source: str, raw: memoryview) -> None:
        self._source = source
        self._raw = raw
        self._room = max(len(raw), 1 << 16) * _EXPANDS

    def _refuse(self, path: str, why: str) -> ModelError:
        return ModelError(f"{self._source}: {path}: {why}")

    def layers(self, file: Any) -> list[tuple[bytes, list[Array | None]]]:
        data = self._member(file["/"], b"data", "/data")
        if not isinstance(data, h5py.Group):
            raise self._refuse("/data", "is not a group: is this a .caffemodel.h5?")
        if len(data) > _MOST_LAYERS:
            raise self._refuse("/data", f"holds {len(data):,} layers")
        # In order of name, as Caffe reads them. A name may have any encoding.
        return [(name, self._layer(data, name)) for name in sorted(data.id)]

    def _member(self, group: Any, name: bytes, path: str) -> Any:
        # By h5py's lower interface: the upper one takes only names in UTF-8.
        if not group.id.links.exists(name):
            raise self._refuse(path, "is missing: is this a .caffemodel.h5?")
        if group.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise self._refuse(
                path,
                "is a link, which featd does not follow: save the weights without links (h5repack, Net.save)",
            )
        found = h5py.h5o.open(group.id, name)
        if isinstance(found, h5py.h5g.GroupID):
            return h5py.Group(found)
        return h5py.Dataset(found) if isinstance(found, h5py.h5d.DatasetID) else found

    def _layer(self, data: Any, name: bytes) -> list[Array | None]:
        path = f"/data/{name.decode('utf-8', 'backslashreplace')}"
        group = self._member(data, name, path)
        if not isinstance(group, h5py.Group):
            raise self._refuse(path, "is not a group: is this a .caffemodel.h5?")
        places: dict[int, Array] = {}
        for key in group:
            if not key.isdecimal() or str(int(key)) != key or int(key) >= _MOST_BLOBS:
                raise self._refuse(f"{path}/{key}", "is not the index of an array")
            places[int(key)] = self._array(group, key, f"{path}/{key}")
        return [places.get(at) for at in range(max(places, default=-1) + 1)]

    def _array(self, group: Any, key: str, path: str) -> Array:
        found = self._member(group, key.encode(), path)
        if not isinstance(found, h5py.Dataset):
            raise self._refuse(path, "is not a dataset")
        if found.is_virtual or found.external:
            raise self._refuse(path, "takes its numbers from other files, which featd refuses")
        if found.dtype.kind not in "fiu" or found.dtype.itemsize > 8:
            raise self._refuse(path, f"holds {found.dtype}, not numbers")
        if found.shape is None:
            raise self._refuse(path, "holds no numbers")
        self._room -= int(found.size) * found.dtype.itemsize
        if self._room < 0:
            raise self._refuse(path, f"declares {found.shape}, more than the file can hold")
        self._stored_in_full(found, path)
        place, size = found.id.get_offset(), int(found.size) * found.dtype.itemsize
        # Caffe's own files hold plain numbers: a view on the file is enough.
        if found.dtype == "<f4" and found.chunks is None and place and place + size <= len(self._raw):
            return np.frombuffer(self._raw, "<f4", found.size, place).reshape(found.shape)
        array: Array = found[()]
        return np.ascontiguousarray(array, np.float32).reshape(found.shape)

    def _stored_in_full(self, found: Any, path: str) -> None:
        # Parts that are not stored read as zeros, which would be taken for weights.
        whole = found.id.get_storage_size() > 0 or found.size == 0
        if found.chunks is not None and whole:
            counts = (-(-dim // chunk) for dim, chunk in zip(found.shape, found.chunks, strict=True))
            whole = found.id.get_num_chunks() == math.prod(counts)
        elif found.chunks is None and whole:
            whole = found.id.get_storage_size() >= found.size * found.dtype.itemsize
        if not whole:
            raise self._refuse(path, "is not stored in full: copy or download the file again")
