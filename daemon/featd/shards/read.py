"""Reading shards that anybody may have made: each is checked before a value is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from featd.shards import layout
from featd.shards.blocks import Blocks
from featd.shards.checksum import ALGORITHM
from featd.shards.layout import ShardError
from featd.shards.untrusted import DAMAGED, one_line, open_untrusted

_STRINGS = (layout.NAMES, layout.ROOT, layout.CONTENT)
_VERIFY = "run `featd verify`"
_GAP_ROWS = 16
_SPAN_ROWS = 4096


def digest_of(parts: Iterable[Any]) -> str:
    """The hash, in hex, of the values of a dataset: numbers as their bytes, strings with a zero byte between them."""
    digest = xxhash.xxh3_128()
    for at, part in enumerate(parts):
        digest.update(b"\0" if at else b"")
        digest.update(part)
    return str(digest.hexdigest())


class ShardReader:
    """An open shard, checked: `rows`, `blobs` (name -> d, in order), `attributes`. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open and check. ShardError: no shard, damaged, or pointing out of itself; OSError: cannot be opened."""
        self.path = path
        self._file = open_untrusted(path)
        try:
            self._check()
        except ShardError:
            self._file.close()
            raise
        except DAMAGED as error:
            self._file.close()
            raise ShardError(f"{path}: damaged: {one_line(error)}: {_VERIFY}") from None

    def read(self, blob: str, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """The vectors (k, d) of `rows`, a sorted array of row indices, in the stored dtype. ShardError where the
        blob or a row is not there, or a block is damaged."""
        if blob not in self.blobs:
            raise ShardError(f"{self.path}: no blob {blob!r}; it holds {', '.join(self.blobs)}")
        return self._take(self._file[f"{layout.BLOBS}/{blob}"], rows)

    def blocks(self, blob: str) -> Blocks | None:
        """Where the vectors of a blob are in the file; None where only HDF5 can read them."""
        return Blocks.of(self._file[f"{layout.BLOBS}/{blob}"])

    def dtype(self, blob: str) -> str:
        """What the vectors of a blob are stored as: float32 or float16."""
        return str(self._file[f"{layout.BLOBS}/{blob}"].dtype)

    def keys(
        self, rows: npt.NDArray[np.integer[Any]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """image_id (k,) and version (k,) of `rows` (sorted), or of all."""
        rows = np.arange(self.rows) if rows is None else rows
        return self._take(self._file[layout.IMAGE_ID], rows), self._take(self._file[layout.VERSION], rows)

    def names(self) -> list[bytes]:
        """Each row's path relative to its root, raw bytes as on disk (perhaps not UTF-8)."""
        return self._strings(layout.NAMES)

    def roots(self) -> list[bytes]:
        """Each row's root, raw bytes."""
        return self._strings(layout.ROOT)

    def contents(self) -> list[str]:
        """Each row's hash of the image file's bytes."""
        return [value.decode("ascii", "replace") for value in self._strings(layout.CONTENT)]

    @property
    def row_bytes(self) -> int:
        """Of one row's vectors."""
        return sum(self.blobs.values()) * int(self._file[layout.FEATS].dtype.itemsize)

    def check_digests(self) -> None:
        """ShardError where a value is not what was sealed, or where an earlier featd sealed the shard: those have no
        digests. Reads everything."""
        try:
            recorded = json.loads(self.attributes.get(layout.DIGESTS) or "{}")
            found = {name: digest_of(self._strings(name)) for name in _STRINGS}
            for name in (layout.IMAGE_ID, layout.VERSION, *(f"{layout.BLOBS}/{blob}" for blob in self.blobs)):
                digest = xxhash.xxh3_128()
                for at in range(0, self.rows, _SPAN_ROWS):
                    rows = np.arange(at, min(at + _SPAN_ROWS, self.rows))
                    digest.update(self._take(self._file[name], rows).data)
                found[name] = digest.hexdigest()
        except DAMAGED as error:
            raise ShardError(f"{self.path}: damaged: {one_line(error)}") from None
        if not recorded:
            raise ShardError(f"{self.path}: sealed by an earlier featd, without digests of its values")
        wrong = [name for name, digest in found.items() if recorded.get(name) != f"{ALGORITHM}:{digest}"]
        if wrong:
            raise ShardError(
                f"{self.path}: damaged: the values of {', '.join(wrong)} are not those that were sealed"
            )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _strings(self, name: str) -> list[bytes]:
        try:
            return [bytes(value) for value in self._file[name][...]]
        except (OSError, RuntimeError) as error:
            raise ShardError(f"{self.path}: damaged: /{name}: {one_line(error)}: {_VERIFY}") from None

    def _take(self, dataset: Any, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows[0] < 0 or rows[-1] >= self.rows or (np.diff(rows) < 0).any()):
            raise ShardError(f"{self.path}: has {self.rows} rows; asked for unsorted rows, or beyond")
        out = np.empty((rows.size, *dataset.shape[1:]), dataset.dtype)
        # Runs with small gaps are read as one piece: HDF5's own point selection costs a look-up for each row.
        breaks = np.flatnonzero(np.diff(rows) > _GAP_ROWS) + 1
        edges = [0, *breaks.tolist(), rows.size]
        try:
            for start, end in itertools.pairwise(edges):
                at = start
                while at < end:
                    first = int(rows[at])
                    stop = at + int(np.searchsorted(rows[at:end], first + _SPAN_ROWS))
                    last = int(rows[stop - 1])
                    if last - first == stop - at - 1 and (np.diff(rows[at:stop]) == 1).all():
                        dataset.read_direct(out, np.s_[first : last + 1], np.s_[at:stop])  # without a copy
                    else:
                        out[at:stop] = dataset[first : last + 1][rows[at:stop] - first]
                    at = stop
        except (OSError, RuntimeError) as error:
            raise ShardError(f"{self.path}: damaged: {dataset.name}: {one_line(error)}: {_VERIFY}") from None
        return out

    def _check(self) -> None:
        self.attributes: dict[str, Any] = {name: _plain(value) for name, value in self._file.attrs.items()}
        if self.attributes.get("format") != layout.FORMAT:
            raise ShardError(
                f"{self.path}: shard format {self.attributes.get('format')!r}, this featd reads {layout.FORMAT}"
            )
        names = json.loads(self.attributes["blobs"])
        self.rows = int(self._dataset(layout.IMAGE_ID, 1, "i").shape[0])
        self._expect_rows(layout.VERSION, 1, "i")
        for name in _STRINGS:
            self._expect_rows(name, 1, "O")
        self.blobs: dict[str, int] = {
            name: int(self._expect_rows(f"{layout.BLOBS}/{name}", 2, "f").shape[1]) for name in names
        }
        feats = self._expect_rows(layout.FEATS, 2, "f")
        if feats != self._file[f"{layout.BLOBS}/{names[0]}"]:
            raise ShardError(f"{self.path}: /feats is not the dataset of its first blob {names[0]!r}")

    def _expect_rows(self, name: str, ndim: int, kind: str) -> Any:
        dataset = self._dataset(name, ndim, kind)
        if dataset.shape[0] != self.rows:
            raise ShardError(f"{self.path}: /{name} has {dataset.shape[0]} rows, not {self.rows}")
        return dataset

    def _dataset(self, name: str, ndim: int, kind: str) -> Any:
        dataset = self._file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise ShardError(f"{self.path}: no dataset /{name}")
        if dataset.ndim != ndim or dataset.dtype.kind != kind:
            raise ShardError(f"{self.path}: /{name} is {dataset.dtype} of {dataset.ndim} dimensions")
        if kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
            raise ShardError(f"{self.path}: /{name} holds no strings")
        return dataset


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
