"""An export as one HDF5 file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featd.export.read import Chunk
from featd.export.sink import Exported
from featd.paths import from_catalog
from featd.shards import atomic
from featd.shards.part_file import PartFile


class Hdf5Sink:
    """One HDF5 file that plain h5py, MATLAB and h5dump read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        atomic.remove_part(path)
        self._fd = atomic.create_part(path)
        self._part = PartFile(self._fd)
        self._file = h5py.File(self._part, "w", libver=("earliest", "v108"))
        self._rows = 0

    def append(self, chunk: Chunk) -> None:
        count, size = chunk.vectors.shape
        if self._rows == 0:
            self._create(size, chunk.vectors.dtype)
        values = {
            "feats": chunk.vectors,
            # Raw bytes, as in shards: a name that is not UTF-8 still opens its file.
            "names": np.array([from_catalog(image.path) for image in chunk.images], object),
            "root": np.array([os.fsencode(image.root) for image in chunk.images], object),
            "image_id": np.array([image.image_id for image in chunk.images], np.int64),
            "version": np.array([image.version for image in chunk.images], np.int32),
        }
        for name, rows in values.items():
            dataset = self._file[name]
            dataset.resize(self._rows + count, axis=0)
            dataset[self._rows :] = rows
        self._rows += count
        self._part.check()

    def _create(self, size: int, dtype: np.dtype[Any]) -> None:
        rows = max(1, min(4096, (1 << 20) // (size * dtype.itemsize)))
        self._file.create_dataset("feats", (0, size), dtype, maxshape=(None, size), chunks=(rows, size))
        for name, kind in (
            ("names", h5py.string_dtype()),
            ("root", h5py.string_dtype()),
            ("image_id", np.int64),
            ("version", np.int32),
        ):
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(4096,))

    def publish(self, exported: Exported, attributes: dict[str, str]) -> None:
        for name, value in attributes.items():
            self._file.attrs[name] = value
        self._file.close()
        self._part.check()
        os.fsync(self._fd)
        self._close()
        atomic.publish_part(self._path)

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()
        self._close()
        atomic.remove_part(self._path)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
