"""An export as one HDF5 file, with the names that shards have: `feats` (n, d), `names`, `root`, `image_id`, `version`.
With several blobs, each is in `blobs`, and `feats` is the first. An export since a token also has `deleted` (k,)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from featd.catalog.live import LiveVector
from featd.paths import from_catalog
from featd.reader.vectors import Kind
from featd.shards import atomic, layout
from featd.shards.part_file import PartFile

# Names are raw bytes, as in shards: a name that is not UTF-8 still opens its file.
COLUMNS: Final[dict[str, tuple[Any, Callable[[LiveVector], object]]]] = {
    layout.NAMES: (h5py.string_dtype(), lambda image: from_catalog(image.path)),
    layout.ROOT: (h5py.string_dtype(), lambda image: os.fsencode(image.root)),
    layout.IMAGE_ID: (np.int64, lambda image: image.image_id),
    layout.VERSION: (np.int32, lambda image: image.version),
}
"""What is beside the vectors: dataset -> its type, and its value for an image."""
DELETED = "deleted"


class Hdf5Sink:
    """One HDF5 file that plain h5py, MATLAB and h5dump read."""

    def __init__(self, path: Path, blobs: Mapping[str, Kind], attributes: Mapping[str, str]) -> None:
        self._path = path
        atomic.remove_part(path)  # left by an export that was killed
        self._raw = os.fdopen(atomic.create_part(path, public=True), "r+b", buffering=0)
        self._part = PartFile(self._raw.fileno())
        self._file = h5py.File(self._part, "w", libver=("earliest", "v108"))
        self._file.attrs.update(attributes)
        self._rows = 0
        several = len(blobs) > 1
        self._names = {blob: f"{layout.BLOBS}/{blob}" if several else layout.FEATS for blob in blobs}
        for blob, kind in blobs.items():
            chunk = (
                max(1, min(4096, (1 << 20) // max(kind.size * kind.dtype.itemsize, 1))),
                max(kind.size, 1),
            )
            shape, most = (0, kind.size), (None, kind.size or None)
            self._file.create_dataset(self._names[blob], shape, kind.dtype, maxshape=most, chunks=chunk)
        if several:
            self._file[layout.FEATS] = self._file[next(iter(self._names.values()))]  # a hard link
        for name, (kind, _) in COLUMNS.items():
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(4096,))

    def append(self, images: Sequence[LiveVector], vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        for blob, name in self._names.items():
            self._extend(name, vectors[blob])
        for name, (kind, value) in COLUMNS.items():
            self._extend(name, np.array([value(image) for image in images], kind))
        self._rows += len(images)
        self._part.check()

    def _extend(self, name: str, values: Any) -> None:
        dataset = self._file[name]
        dataset.resize(self._rows + len(values), axis=0)
        dataset[self._rows :] = values

    def publish(self, deleted: npt.NDArray[np.int64] | None) -> None:
        """Complete the file and give it its name."""
        if deleted is not None:
            self._file.create_dataset(DELETED, data=deleted)
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
