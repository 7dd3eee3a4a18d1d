"""One HDF5 file of a script: a dataset of vectors and one of names. Anybody may have made it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featd.shards.layout import ShardError
from featd.shards.untrusted import DAMAGED, LZF, one_line, open_untrusted

BLOCK_BYTES = 16 * 1024 * 1024
"""Vectors that are read at once."""
MOST_BLOCK_ROWS = 1024
_FLOATS = (2, 4, 8)


class ScriptFileError(ShardError):
    """A file that is not what a script writes, or not to be trusted. Nothing of it is taken over."""


class ScriptFile:
    """An open file, checked: `rows`, `width` (numbers of a vector), `made_at_ns` (what changed later is
    not what its vectors were made from), `block_rows` (rows to read at once). Use as a context manager."""

    def __init__(self, path: Path, feats: str, names: str, made_at_ns: int | None = None) -> None:
        """`feats` and `names` are the datasets; `made_at_ns` is the file's mtime where it is None. ScriptFileError;
        ShardError; OSError."""
        self.path = path
        found = path.stat()
        self.key = (found.st_dev, found.st_ino)
        self.made_at_ns = found.st_mtime_ns if made_at_ns is None else made_at_ns
        self._file = open_untrusted(path, (LZF,))
        try:
            self._check(feats, names)
        except ShardError:
            self._file.close()
            raise
        except DAMAGED as error:
            self._file.close()
            raise ScriptFileError(f"{path}: damaged: {one_line(error)}") from None

    def names(self, start: int, stop: int) -> list[bytes]:
        """The names of these rows, as bytes, without a line break that was read with them. ScriptFileError."""
        try:
            values = self._names[start:stop].reshape(-1).tolist()
            return [bytes(value).rstrip(b"\r\n") for value in values]
        except DAMAGED as error:
            raise self._damaged(self._names, start, stop, error) from None

    def vectors(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The vectors (k, width) of these rows. Numbers of 64 bits are rounded to nearest; what is beyond float32 is
        infinite. ScriptFileError."""
        try:
            values = self._feats[start:stop].reshape(stop - start, self.width)
        except DAMAGED as error:
            raise self._damaged(self._feats, start, stop, error) from None
        with np.errstate(over="ignore"):
            vectors: npt.NDArray[np.float32] = values.astype(np.float32, copy=False)
        return vectors

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ScriptFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _damaged(self, dataset: Any, start: int, stop: int, error: Exception) -> ScriptFileError:
        return ScriptFileError(
            f"{self.path}: damaged: rows {start} to {stop - 1} of {dataset.name} cannot be read: {one_line(error)}"
        )

    def _check(self, feats: str, names: str) -> None:
        self._feats, self._names = self._dataset(feats, "--feats"), self._dataset(names, "--names")
        shape, dtype = self._feats.shape, self._feats.dtype
        if dtype.kind != "f" or dtype.itemsize not in _FLOATS:
            raise ScriptFileError(f"{self.path}: {feats} holds {dtype}, not float16, float32 or float64")
        if len(shape) < 2:
            raise ScriptFileError(f"{self.path}: {feats} has the shape {shape}, not (images, numbers)")
        if h5py.check_string_dtype(self._names.dtype) is None:
            raise ScriptFileError(f"{self.path}: {names} holds {self._names.dtype}, not strings")
        self.rows, self.width = int(shape[0]), math.prod(shape[1:])
        if self._names.shape not in ((self.rows,), (self.rows, 1)):
            raise ScriptFileError(
                f"{self.path}: {names} has the shape {self._names.shape}, and {feats} {shape}: each vector"
                " needs one name"
            )
        row_bytes = max(self.width * max(dtype.itemsize, 4), 1)
        self.block_rows = max(1, min(MOST_BLOCK_ROWS, BLOCK_BYTES // row_bytes))

    def _dataset(self, name: str, option: str) -> Any:
        found = self._file.get(name) if name.strip("/") else None
        if not isinstance(found, h5py.Dataset):
            there = sorted(one for one in self._file if isinstance(self._file[one], h5py.Dataset))
            listed = ", ".join(map(repr, there[:10])) or "none"
            raise ScriptFileError(
                f"{self.path}: no dataset {name!r} (its datasets: {listed}): name it with {option}"
            )
        if found.shape is None:
            raise ScriptFileError(f"{self.path}: {name} is empty")
        return found


def spelled(path: Path) -> str:
    """The file's path for a report: text, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
