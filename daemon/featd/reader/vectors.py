"""The live vectors of a catalog in order of image id, a chunk at a time. Every vector is checked to be that of the
image that its row names, and every shard is compared with its checksum. A shard that is gone is looked up again:
compaction may have moved its rows meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd.catalog import connect, live
from featd.catalog.live import LiveVector
from featd.errors import reason
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader
from featd.shards.store import shard_is_missing, unknown_folder
from featd.shards.verify import Verified

CHUNK_BYTES = 32 * 1024 * 1024
"""Of vectors in memory at a time."""
CATALOG_ROWS = 4096
"""Read from the catalog at a time."""

AGAIN = "bring the file back from a backup, or have its vectors made again: `featd verify --repair`"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images and their vectors (n, d), row by row."""

    images: Sequence[LiveVector]
    vectors: npt.NDArray[Any]


class LiveReader:
    """Reads the live vectors of one blob from the shards."""

    def __init__(
        self, catalog: sa.Engine, store: Path, blob: str, fingerprint: str, verified: Verified | None = None
    ) -> None:
        """verified: the shards that others have compared with their checksums."""
        self._catalog = catalog
        self._store = store
        self._blob = blob
        self._fingerprint = fingerprint
        self._verified = verified or Verified()
        self._like: npt.NDArray[Any] | None = None  # the first vector: all have its size and dtype

    def chunks(self) -> Iterator[Chunk]:
        """All live vectors in order of image id. ShardError where a shard is not what its rows say."""
        for images in live.walk_live(self._catalog, CATALOG_ROWS):
            at = 0
            while at < len(images):
                # The first chunk is one vector, which tells how many fit the next ones.
                count = 1 if self._like is None else max(1, CHUNK_BYTES // self._like.nbytes)
                some = images[at : at + count]
                at += len(some)
                chunk = self.vectors_of(some)
                if chunk.images:
                    yield chunk

    def vectors_of(self, images: Sequence[LiveVector]) -> Chunk:
        """The vectors of those of `images` that still are live. ShardError."""
        return self._read(images) or self._read_again(images)

    def _read(self, images: Sequence[LiveVector]) -> Chunk | None:
        """The vectors of `images`; None where a shard is not there (compaction has moved its rows meanwhile)."""
        by_shard: dict[str, list[int]] = {}
        for at, image in enumerate(images):
            by_shard.setdefault(image.shard_path, []).append(at)
        vectors: npt.NDArray[Any] | None = None
        for path, places in by_shard.items():
            places.sort(key=lambda at: images[at].shard_row)
            try:
                found = self._read_shard(self._store / path, [images[at] for at in places])
            except FileNotFoundError:
                return None
            if places == list(range(len(images))):
                return Chunk(images, found)
            if vectors is None:
                vectors = np.empty((len(images), *found.shape[1:]), found.dtype)
            vectors[places] = found
        assert vectors is not None  # there is at least one image
        return Chunk(images, vectors)

    def _read_shard(self, path: Path, images: Sequence[LiveVector]) -> npt.NDArray[Any]:
        """The vectors of `images`, which are in order of row. FileNotFoundError; ShardError."""
        try:
            self._verified.check(path, images[0].checksum)
        except ShardError as error:
            raise ShardError(f"{error}; {AGAIN}") from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be read: {reason(error)}: check the disk and its owner"
            ) from error
        rows = np.array([image.shard_row for image in images], np.int64)
        with ShardReader(path) as reader:
            if reader.attributes.get("fingerprint") != self._fingerprint:
                raise ShardError(f"{path}: holds vectors of another fingerprint than the catalog")
            ids, _ = reader.keys(rows)
            for image, found_id in zip(images, ids.tolist(), strict=True):
                if image.image_id != found_id:
                    raise ShardError(
                        f"{path}: row {image.shard_row} holds the vector of image {found_id}, the catalog says image"
                        f" {image.image_id} ({image.path}): run `featd verify`"
                    )
            found = reader.read(self._blob, rows)
        if self._like is None:
            self._like = found[0]
        if (found.shape[1:], found.dtype) != (self._like.shape, self._like.dtype):
            raise ShardError(
                f"{path}: blob {self._blob!r} has {found.shape[1]} numbers ({found.dtype}), in another shard"
                f" {len(self._like)} ({self._like.dtype})"
            )
        return found

    def _read_again(self, images: Sequence[LiveVector]) -> Chunk:
        """Read from where the rows of `images` are now; ShardError where a shard is missing that the catalog names."""
        for _ in range(3):
            with connect.reading(self._catalog) as conn:
                images = live.still_live(conn, images)
            if not images:
                return Chunk((), np.empty((0, 0), np.float32))
            if (chunk := self._read(images)) is not None:
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
