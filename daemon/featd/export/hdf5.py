"""An export as one HDF5 file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from featd.catalog.live import LiveVector
from featd.paths import from_catalog
from featd.reader.vectors import Chunk
from featd.shards import atomic
from featd.shards.part_file import PartFile

# Names are raw bytes, as in shards: a name that is not UTF-8 still opens its file.
COLUMNS: Final[dict[str, tuple[Any, Callable[[LiveVector], object]]]] = {
    "names": (h5py.string_dtype(), lambda image: from_catalog(image.path)),
    "root": (h5py.string_dtype(), lambda image: os.fsencode(image.root)),
    "image_id": (np.int64, lambda image: image.image_id),
    "version": (np.int32, lambda image: image.version),
}
"""What is beside `feats`: dataset -> its type, and its value for an image."""


class Hdf5Sink:
    """One HDF5 file that plain h5py, MATLAB and h5dump read."""

    def __init__(self, path: Path, size: int, dtype: np.dtype[Any]) -> None:
        self._path = path
        atomic.remove_part(path)  # left by an export that was killed
        self._raw = os.fdopen(atomic.create_part(path, public=True), "r+b", buffering=0)
        self._part = PartFile(self._raw.fileno())
        self._file = h5py.File(self._part, "w", libver=("earliest", "v108"))
        self._rows = 0
        chunk_rows = max(1, min(4096, (1 << 20) // (size * dtype.itemsize)))
        self._file.create_dataset("feats", (0, size), dtype, maxshape=(None, size), chunks=(chunk_rows, size))
        for name, (kind, _) in COLUMNS.items():
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(4096,))

    def append(self, chunk: Chunk) -> None:
        self._extend("feats", chunk.vectors)
        for name, (kind, value) in COLUMNS.items():
            self._extend(name, np.array([value(image) for image in chunk.images], kind))
        self._rows += len(chunk.images)
        self._part.check()

    def _extend(self, name: str, values: Any) -> None:
        dataset = self._file[name]
        dataset.resize(self._rows + len(values), axis=0)
        dataset[self._rows :] = values

    def publish(self, attributes: dict[str, str]) -> None:
        """Complete the file and give it its name. `attributes` are kept at its root."""
        self._file.attrs.update(attributes)
        self._file.close()
        self._part.check()
        os.fsync(self._raw.fileno())
        self._raw.close()
        atomic.publish_part(self._path)

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()
        self._raw.close()
        atomic.remove_part(self._path)
