"""The live vectors of a catalog. Every vector is checked to be that of the image that its row names, and every shard is
compared with its checksum. A shard that is gone is looked up again: compaction may have moved its rows meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd.catalog import connect, instance, live
from featd.catalog.live import LiveVector
from featd.errors import ModelError, reason
from featd.shards.blocks import Blocks
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader
from featd.shards.store import shard_is_missing, unknown_folder
from featd.shards.verify import Verified

MOST_OPEN = 64
"""Shards that are kept open: images that several workers have made at a time are in as many shards."""
MOST_ROWS = 65_536
"""In memory at a time: the names of images take room, too."""
THREADS = min(4, len(os.sched_getaffinity(0)))
"""That read files at a time, where vectors are in several."""

AGAIN = "bring the file back from a backup, or have its vectors made again: `featd verify --repair`"


@dataclass(frozen=True, slots=True)
class Kind:
    """What the vectors of a blob are."""

    size: int
    dtype: np.dtype[Any]
    """float32 or float16."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images and their vectors (n, d) of each blob, row by row."""

    images: Sequence[LiveVector]
    vectors: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """A shard that was compared with its checksum. Its file is open, but not in HDF5, which would keep others in this
    process from opening it otherwise."""

    path: Path
    file: BinaryIO
    ids: npt.NDArray[np.int64]
    """Of the image of each row."""
    blocks: Mapping[str, Blocks | None]

    def read(
        self, blob: str, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], places: npt.NDArray[np.int64]
    ) -> None:
        """Read the vector of `rows[i]` into `out[places[i]]`, for each i; `rows` are in ascending order. ShardError;
        FileNotFoundError."""
        blocks = self.blocks[blob]
        if blocks is None:
            with ShardReader(self.path) as reader:
                out[places] = reader.read(blob, rows)
            return
        try:
            blocks.read(self.file.fileno(), rows, out, places)
        except OSError as error:
            raise _unreadable(self.path, error) from error


class LiveReader:
    """Reads the live vectors from the shards. Shards stay open until `close`. For one thread."""

    def __init__(self, catalog: sa.Engine, store: Path) -> None:
        self._catalog = catalog
        self._store = store
        self._verified = Verified()
        self._open: dict[str, _OpenShard] = {}
        self._fingerprint: str | None = None
        self._blobs: dict[str, Kind] = {}

    @property
    def blobs(self) -> Mapping[str, Kind]:
        """In the order of the configuration; empty before the first image is done. ShardError."""
        if not self._blobs:
            with connect.reading(self._catalog) as conn:
                some = live.live_vectors(conn, 0, 1)
            if some:
                self.vectors_of(some, ())
        return self._blobs

    def blob(self, name: str | None) -> str:
        """This blob, or the first. ModelError where there is none."""
        if name is None and self.blobs:
            return next(iter(self.blobs))
        if name is None or name not in self.blobs:
            raise ModelError(f"no blob {name!r} in this catalog; it has: {', '.join(self.blobs)}")
        return name

    def rows_of(self, blobs: Sequence[str], size: int) -> int:
        """How many images have vectors of `size` bytes: at least one, at most MOST_ROWS."""
        row = sum(self.blobs[blob].size * self.blobs[blob].dtype.itemsize for blob in blobs)
        return max(1, min(MOST_ROWS, size // max(row, 1)))

    def chunks(self, blobs: Sequence[str], rows: int) -> Iterator[Chunk]:
        """All live vectors in order of image id, up to `rows` at a time. ShardError where a shard is not what its rows
        say."""
        pages = live.walk_live(self._catalog, rows)
        images = next(pages, ())
        with ThreadPoolExecutor(1) as thread:
            while images:
                following = next(pages, ())
                ahead = thread.submit(self._compare_ahead, following)
                chunk = self.vectors_of(images, blobs)
                if chunk.images:
                    yield chunk
                ahead.result()
                images = following

    def vectors_of(self, images: Sequence[LiveVector], blobs: Sequence[str]) -> Chunk:
        """The vectors of those of `images` that still are live. ShardError."""
        if not images:
            return self._empty(blobs)
        return self._read(images, blobs) or self._read_again(images, blobs)

    def _compare_ahead(self, images: Sequence[LiveVector]) -> None:
        """Compare the shards of these images with their checksums, while others are read."""
        for path, checksum in {image.shard_path: image.checksum for image in images}.items():
            with contextlib.suppress(ShardError, OSError):  # whoever reads it says what is wrong
                self._verified.check(self._store / path, checksum)

    def close(self) -> None:
        """Close the shards. It can be used again."""
        while self._open:
            self._open.popitem()[1].file.close()

    def _read(self, images: Sequence[LiveVector], blobs: Sequence[str]) -> Chunk | None:
        """The vectors of `images`; None where a shard is not there (compaction has moved its rows meanwhile)."""
        by_shard: dict[str, list[int]] = {}
        for at, image in enumerate(images):
            by_shard.setdefault(image.shard_path, []).append(at)
        vectors: dict[str, npt.NDArray[Any]] = {}

        def read(path: str) -> None:
            places = np.array(by_shard[path], np.int64)
            rows = np.array([images[at].shard_row for at in by_shard[path]], np.int64)
            self._check_ids(self._open[path], rows, [images[at] for at in by_shard[path]])
            order = np.argsort(rows)
            for blob, out in vectors.items():
                self._open[path].read(blob, rows[order], out, places[order])

        paths = list(by_shard)
        try:
            for start in range(0, len(paths), MOST_OPEN):
                some = paths[start : start + MOST_OPEN]
                self._open_shards({path: images[by_shard[path][0]].checksum for path in some})
                if not vectors:
                    kinds = {blob: self._blobs[blob] for blob in blobs}
                    vectors = {
                        blob: np.empty((len(images), kind.size), kind.dtype) for blob, kind in kinds.items()
                    }
                _each(read, some)
        except FileNotFoundError:
            return None
        return Chunk(images, vectors)

    def _check_ids(
        self, shard: _OpenShard, rows: npt.NDArray[np.int64], images: Sequence[LiveVector]
    ) -> None:
        if rows.min() < 0 or rows.max() >= len(shard.ids):
            raise ShardError(
                f"{shard.path}: has {len(shard.ids)} rows, the catalog says row {rows.max()}: run `featd verify`"
            )
        wanted = np.array([image.image_id for image in images], np.int64)
        if (wrong := np.flatnonzero(shard.ids[rows] != wanted)).size:
            image = images[wrong[0]]
            raise ShardError(
                f"{shard.path}: row {image.shard_row} holds the vector of image {shard.ids[image.shard_row]}, the"
                f" catalog says image {image.image_id} ({image.path}): run `featd verify`"
            )

    def _open_shards(self, checksums: Mapping[str, str]) -> None:
        """Compare and open the shards at these paths of the store. FileNotFoundError; ShardError."""
        new = [path for path in checksums if path not in self._open]
        others = [path for path in self._open if path not in checksums]
        for path in others[: max(0, len(self._open) + len(new) - MOST_OPEN)]:
            self._open.pop(path).file.close()
        _each(lambda path: self._compare(self._store / path, checksums[path]), new)
        for path in checksums:
            shard = self._open.pop(path) if path in self._open else self._open_shard(self._store / path)
            self._open[path] = shard  # those used last are last

    def _compare(self, path: Path, checksum: str) -> None:
        try:
            self._verified.check(path, checksum)
        except ShardError as error:
            raise ShardError(f"{error}; {AGAIN}") from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from error

    def _open_shard(self, path: Path) -> _OpenShard:
        file = path.open("rb", buffering=0)
        try:
            with ShardReader(path) as reader:
                self._check_kinds(reader)
                blocks = {blob: reader.blocks(blob) for blob in reader.blobs}
                return _OpenShard(path, file, reader.keys()[0], blocks)
        except BaseException:
            file.close()
            raise

    def _check_kinds(self, reader: ShardReader) -> None:
        """ShardError where the shard's vectors are of another kind than those before."""
        if self._fingerprint is None:
            with connect.reading(self._catalog) as conn:
                self._fingerprint = instance.fingerprint(conn)
        if reader.attributes.get("fingerprint") != self._fingerprint:
            raise ShardError(f"{reader.path}: holds vectors of another fingerprint than the catalog")
        found = {blob: Kind(size, np.dtype(reader.dtype(blob))) for blob, size in reader.blobs.items()}
        self._blobs = self._blobs or found
        if found != self._blobs:
            raise ShardError(
                f"{reader.path}: has the blobs {_words(found)}, another shard {_words(self._blobs)}"
            )

    def _empty(self, blobs: Sequence[str]) -> Chunk:
        kinds = {blob: self.blobs[blob] for blob in blobs}
        return Chunk((), {blob: np.empty((0, kind.size), kind.dtype) for blob, kind in kinds.items()})

    def _read_again(self, images: Sequence[LiveVector], blobs: Sequence[str]) -> Chunk:
        """Read from where the rows of `images` are now; ShardError where a shard is missing that the catalog names."""
        for _ in range(3):
            with connect.reading(self._catalog) as conn:
                images = live.still_live(conn, images)
            if not images:
                return self._empty(blobs)
            if (chunk := self._read(images, blobs)) is not None:
                return chunk
        missing = next(image for image in images if shard_is_missing(self._store / image.shard_path))
        raise ShardError(
            f"{self._store / missing.shard_path}: missing, but the catalog says that row {missing.shard_row} of it is"
            f" {missing.path}: {self._way_out(Path(missing.shard_path).name)}"
        )

    def _way_out(self, name: str) -> str:
        if (unknown_folder(self._store) / name).exists():
            return "it is in `unknown` in the store, and comes back when featd runs"
        return AGAIN


def _each(work: Callable[[str], None], paths: Sequence[str]) -> None:
    """Do the work for each path, in threads: comparing and reading files release Python's lock."""
    if len(paths) < 2:
        for path in paths:
            work(path)
        return
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(work, paths):
            pass


def _unreadable(path: Path, error: OSError) -> ShardError:
    return ShardError(f"{path}: cannot be read: {reason(error)}: check the disk and its owner")


def _words(blobs: Mapping[str, Kind]) -> str:
    return ", ".join(f"{name!r} of {kind.size} numbers ({kind.dtype})" for name, kind in blobs.items())
