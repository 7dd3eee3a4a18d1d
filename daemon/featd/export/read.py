"""The live vectors of a catalog in order of image id, a chunk at a time. Every vector is checked to be that of the
image that its row names. A shard that is gone is looked up again: compaction may have moved its rows meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd.catalog import connect, live
from featd.catalog.live import LiveVector
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader

CHUNK_BYTES = 32 * 1024 * 1024
"""Of vectors in memory at a time."""
CATALOG_ROWS = 4096
"""Read from the catalog at a time."""
OPEN_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images and their vectors (n, d), row by row."""

    images: Sequence[LiveVector]
    vectors: npt.NDArray[Any]


def read_chunks(catalog: sa.Engine, store: Path, blob: str, fingerprint: str) -> Iterator[Chunk]:
    """The live vectors of `blob` in order of image id. ShardError where a shard is not what its rows say."""
    with OpenShards(store, fingerprint) as shards:
        for images in live.walk_live(catalog, CATALOG_ROWS):
            at = 0
            while at < len(images):
                some = images[at : at + _rows_at_once(shards, images[at], blob)]
                at += len(some)
                chunk = _read(shards, some, blob) or _read_again(catalog, shards, some, blob)
                if chunk.images:
                    yield chunk


def _rows_at_once(shards: OpenShards, image: LiveVector, blob: str) -> int:
    try:
        size = shards.open(image.shard_path).blobs.get(blob, 1)
    except FileNotFoundError:
        return CATALOG_ROWS
    return max(1, CHUNK_BYTES // (size * 4))


def _read(shards: OpenShards, images: Sequence[LiveVector], blob: str) -> Chunk | None:
    """The vectors of `images`; None where a shard is not there (compaction has moved its rows meanwhile)."""
    by_shard: dict[str, list[int]] = {}
    for at, image in enumerate(images):
        by_shard.setdefault(image.shard_path, []).append(at)
    vectors: npt.NDArray[Any] | None = None
    for path, places in by_shard.items():
        try:
            reader = shards.open(path)
        except FileNotFoundError:
            return None
        places.sort(key=lambda at: images[at].shard_row)
        rows = np.array([images[at].shard_row for at in places], np.int64)
        ids, _ = reader.keys(rows)
        wrong = np.flatnonzero(ids != np.array([images[at].image_id for at in places], np.int64))
        if wrong.size:
            at = places[int(wrong[0])]
            raise ShardError(
                f"{reader.path}: row {images[at].shard_row} holds the vector of image {int(ids[wrong[0]])}, the catalog"
                f" says image {images[at].image_id} ({images[at].path}): nothing was exported"
            )
        found = reader.read(blob, rows)
        if vectors is None:
            vectors = np.empty((len(images), found.shape[1]), found.dtype)
        if vectors.shape[1:] != found.shape[1:] or vectors.dtype != found.dtype:
            raise ShardError(
                f"{reader.path}: blob {blob!r} is {found.dtype} of {found.shape[1]}, unlike other shards"
            )
        vectors[places] = found
    assert vectors is not None  # there is at least one image
    return Chunk(images, vectors)


def _read_again(catalog: sa.Engine, shards: OpenShards, images: Sequence[LiveVector], blob: str) -> Chunk:
    """Where the rows of `images` point now; ShardError where a shard is missing that the catalog still names."""
    for _ in range(3):
        wanted = {image.image_id for image in images}
        with connect.reading(catalog) as conn:
            found = live.live_vectors(conn, images[0].image_id - 1, len(images))
        images = [image for image in found if image.image_id in wanted]
        if not images:
            return Chunk((), np.empty((0, 0), np.float32))
        if (chunk := _read(shards, images, blob)) is not None:
            return chunk
    missing = next(image for image in images if not shards.path(image.shard_path).exists())
    raise ShardError(
        f"{shards.path(missing.shard_path)}: missing, but the catalog says that row {missing.shard_row} of it is"
        f" {missing.path}: nothing was exported"
    )


class OpenShards:
    """The shards read last, kept open."""

    def __init__(self, store: Path, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()

    def path(self, relative: str) -> Path:
        return self._store / relative

    def open(self, relative: str) -> ShardReader:
        """FileNotFoundError where it is not there; ShardError where it holds other vectors than the catalog."""
        reader = self._readers.get(relative)
        if reader is None:
            while len(self._readers) >= OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
            reader = ShardReader(self.path(relative))
            if reader.attributes.get("fingerprint") != self._fingerprint:
                reader.close()
                raise ShardError(f"{reader.path}: holds vectors of another fingerprint than the catalog")
            self._readers[relative] = reader
        self._readers.move_to_end(relative)
        return reader

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, *exc: object) -> None:
        for reader in self._readers.values():
            reader.close()
