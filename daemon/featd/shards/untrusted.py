"""Opening HDF5 files that anybody may have made: no other file is opened and no plugin is run.

HDF5 can refer to other files (external links, external storage, virtual datasets). All of these are refused on every
component of every path before any value is read.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py

from featd.paths import open_regular
from featd.shards.layout import ShardError

_ZSTD = 32015
_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, _ZSTD})
LZF = h5py.h5z.FILTER_LZF
"""A filter that is part of h5py. Shards never have it."""
_MOST_OBJECTS = 4096
# deflate shrinks at most about 1030 times; a file that declares more is a bomb. zstd and unwritten chunks may
# do better on zeros, so the bound is generous, and reads go by rows anyway.
_MOST_RATIO = 20_000
_MOST_CHUNK_BYTES = 64 * 1024 * 1024
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError)
"""Whatever HDF5 and h5py raise on a damaged file."""


def open_untrusted(path: Path, more_filters: Collection[int] = ()) -> h5py.File:
    """Open and check; `more_filters` are allowed beside those of shards. ShardError: no HDF5 file, damaged, or pointing
    out of itself; OSError: cannot be opened."""
    with open_regular(path):  # a clear OSError where it is missing, may not be read, or would block
        pass
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ShardError(f"{path}: not a readable HDF5 file: {one_line(error)}") from None
    try:
        _refuse_links(path, file, _FILTERS.union(more_filters))
    except ShardError:
        file.close()
        raise
    except DAMAGED as error:
        file.close()
        raise ShardError(f"{path}: damaged: {one_line(error)}") from None
    return file


def one_line(error: BaseException) -> str:
    """What HDF5 says, on one line and not too long."""
    return " ".join(str(error).split())[:300]


def _refuse_links(path: Path, file: h5py.File, filters: Collection[int]) -> None:
    """Walk every link of the file, before anything is read through one."""
    size = path.stat().st_size
    seen: set[Any] = set()
    waiting: list[Any] = [file]
    while waiting:
        group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ShardError(f"{path}: {name!r} is a link to somewhere else")
            item = group[name]
            where = h5py.h5o.get_info(item.id).addr
            if where in seen:
                continue
            seen.add(where)
            if len(seen) > _MOST_OBJECTS:
                raise ShardError(f"{path}: more than {_MOST_OBJECTS} objects")
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                _refuse_outside(path, item, size, filters)
            else:
                raise ShardError(f"{path}: {name!r} is neither dataset nor group")


def _refuse_outside(path: Path, dataset: Any, size: int, allowed: Collection[int]) -> None:
    if dataset.external or dataset.is_virtual:
        raise ShardError(f"{path}: {dataset.name} keeps its values in other files")
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(at)[0] for at in range(properties.get_nfilters())}
    if unknown := sorted(filters.difference(allowed)):
        raise ShardError(f"{path}: {dataset.name} is stored through unknown filters {unknown}")
    if _ZSTD in filters:
        with contextlib.suppress(ImportError):  # reading will say that the filter is missing
            importlib.import_module("hdf5plugin")
    most_chunk = max(_MOST_CHUNK_BYTES, dataset.dtype.itemsize * dataset.shape[-1] if dataset.ndim else 0)
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > most_chunk:
        raise ShardError(f"{path}: {dataset.name} has chunks of {dataset.chunks} values")
    declared = (dataset.size or 0) * dataset.dtype.itemsize
    if declared > size * (_MOST_RATIO if filters else 1):
        raise ShardError(f"{path}: {dataset.name} declares {declared} bytes in a file of {size}")
