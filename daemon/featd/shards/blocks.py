"""Where the rows of a dataset are in its file, and reading them from there without HDF5.

For files whose checksum was compared: HDF5 would copy each block and compare a second checksum, which takes longer than
the reading itself. What is compressed only HDF5 can read.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

_MOST_BUFFERS = 1024
"""That preadv(2) takes at once: IOV_MAX of Linux."""


class Blocks:
    """The blocks of whole rows that a dataset (n, d) is stored in."""

    def __init__(self, rows: int, row_bytes: int, offsets: list[int]) -> None:
        """rows: in a block; offsets: of each block in the file."""
        self._rows = rows
        self._row_bytes = row_bytes
        self._offsets = offsets

    @classmethod
    def of(cls, dataset: Any) -> Blocks | None:
        """None where the values are not in the file as they are."""
        count, width = dataset.shape
        if dataset.chunks is None:
            offset = dataset.id.get_offset()
            return None if offset is None else cls(max(count, 1), width * dataset.dtype.itemsize, [offset])
        properties = dataset.id.get_create_plist()
        filters = {properties.get_filter(at)[0] for at in range(properties.get_nfilters())}
        if filters - {h5py.h5z.FILTER_FLETCHER32} or dataset.chunks[1] != width:
            return None
        if not hasattr(dataset.id, "chunk_iter"):  # HDF5 before 1.12.3
            return None
        rows = dataset.chunks[0]
        found: dict[int, int] = {}

        def note(chunk: Any) -> None:
            found[chunk.chunk_offset[0]] = chunk.byte_offset

        dataset.id.chunk_iter(note)
        offsets = [found[at] for at in range(0, count, rows) if at in found]
        whole = len(offsets) == -(-count // rows)
        return cls(rows, width * dataset.dtype.itemsize, offsets) if whole else None

    def read(
        self, fd: int, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], places: npt.NDArray[np.int64]
    ) -> None:
        """Read row `rows[i]` into `out[places[i]]`, for each i; `rows` are in ascending order. OSError."""
        block = rows // self._rows
        # Rows that follow each other in a block are read at once, wherever each of them goes to.
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(block) != 0)) + 1
        steady = np.diff(places) == 1
        for first, end in itertools.pairwise([0, *breaks.tolist(), rows.size]):
            whole = bool(steady[first : end - 1].all())
            for start in range(first, end, end - first if whole else _MOST_BUFFERS):
                stop = end if whole else min(start + _MOST_BUFFERS, end)
                at = places[start]
                into: Any = (
                    [out[at : at + stop - start]] if whole else [out[place] for place in places[start:stop]]
                )
                offset = self._offsets[block[start]] + int(rows[start] % self._rows) * self._row_bytes
                if os.preadv(fd, into, offset) != (stop - start) * self._row_bytes:
                    raise OSError(errno.EIO, "the file is shorter than it says")
