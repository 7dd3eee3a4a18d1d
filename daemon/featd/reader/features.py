"""What `featd.open` gives: the live vectors by path, in batches, and what became of them since a token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import config as configuration
from featd.catalog import connect, counters, feed, live, migrate, pairing
from featd.catalog.feed import Token
from featd.catalog.live import LiveVector
from featd.errors import AmbiguousPathError
from featd.paths import from_catalog, to_catalog
from featd.reader.vectors import Chunk, LiveReader
from featd.states import State

CHANGES = 100
"""Changes that are looked up at once; each is of up to some thousand images."""

BATCH_BYTES = 30_000_000
"""Of vectors in a batch, where nobody says how many rows. Below 32 MiB malloc(3) uses the memory of earlier batches
again; the kernel takes about as long to give new memory as to read a batch into it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images and their vectors, row by row. A path is relative to its root, as `os.fsdecode` gives it."""

    ids: npt.NDArray[np.int64]
    """(n,)"""
    roots: Sequence[str]
    paths: Sequence[str]
    vectors: npt.NDArray[np.float32]
    """(n, d)"""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of some images up to `token`."""

    upserts: Batch
    """Images with a new vector, or another one, or the same again."""
    deleted: npt.NDArray[np.int64]
    """(n,) ids of images without a live vector."""
    token: str


class Features:
    """The live vectors of an instance. featd may run meanwhile: each batch is of one moment, and a shard that moves is
    found again. Vectors are float32, whatever they are stored as. ShardError where a shard is missing or damaged;
    CatalogUnavailableError where the database is. Use as a context manager, in one thread."""

    def __init__(self, catalog: sa.Engine, store: Path) -> None:
        self._catalog = catalog
        self._reader = LiveReader(catalog, store)

    @property
    def blobs(self) -> dict[str, int]:
        """Name -> size of its vectors, in the order of the configuration; empty before the first image is done."""
        return {name: kind.size for name, kind in self._reader.blobs.items()}

    @property
    def token(self) -> str:
        """Where the feed of changes stands now. Take it before you read everything, and go on with `changes`."""
        with connect.reading(self._catalog) as conn:
            return str(feed.now(conn))

    def __len__(self) -> int:
        """How many vectors are live."""
        with connect.reading(self._catalog) as conn:
            return counters.counts(conn)[State.DONE]

    def __contains__(self, path: object) -> bool:
        """Whether an image has a vector, by its path or (root, path)."""
        root, name = path if isinstance(path, tuple) else (None, path)
        if not isinstance(name, str):
            return False
        with connect.reading(self._catalog) as conn:
            return bool(live.live_at(conn, to_catalog(os.fsencode(name)), root))

    def __getitem__(self, path: str | tuple[str, str]) -> npt.NDArray[np.float32]:
        """The vector (d,) of the first blob of an image, by its path in its root, or by (root, path). KeyError where it
        has none; AmbiguousPathError where several roots have one."""
        return self.get(path)

    def get(self, path: str | tuple[str, str], blob: str | None = None) -> npt.NDArray[np.float32]:
        """The same, of any blob."""
        root, name = path if isinstance(path, tuple) else (None, path)
        with connect.reading(self._catalog) as conn:
            found = live.live_at(conn, to_catalog(os.fsencode(name)), root)
        if len(found) > 1:
            roots = ", ".join(one.root for one in found)
            raise AmbiguousPathError(
                f"several roots have {name}: ask for (root, path); the roots are {roots}"
            )
        batch = self._vectors_of(found, blob)
        if not len(batch.ids):
            raise KeyError(path)
        vector: npt.NDArray[np.float32] = batch.vectors[0]
        return vector

    def batches(self, blob: str | None = None, rows: int | None = None) -> Iterator[Batch]:
        """All live vectors of a blob (the first), in order of image id, up to `rows` (as many as take 30 MB) in
        a batch. Memory holds the one that you have and the next. ValueError."""
        if rows is not None and rows < 1:
            raise ValueError("rows must be at least 1")
        if self._reader.blobs:
            name = self._reader.blob(blob)
            rows = rows or self._reader.rows_of([name], BATCH_BYTES)
            yield from map(_batch, self._reader.chunks([name], rows))

    def changes(self, since: str, blob: str | None = None) -> Iterator[Change]:
        """What became of the images since a token, up to now. TokenError where it leads nowhere: begin anew."""
        token = Token.parse(since)
        while True:
            with connect.reading(self._catalog) as conn:
                found = feed.changes(conn, token, CHANGES)
            if found.token != token:
                deleted = np.array([one.image_id for one in found.deleted], np.int64)
                yield Change(self._vectors_of(found.upserts, blob), deleted, str(found.token))
            token = found.token
            if not found.left:
                return

    def close(self) -> None:
        """Close the shards, and give back the connection to the catalog."""
        self._reader.close()
        self._catalog.dispose()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _vectors_of(self, images: Sequence[LiveVector], blob: str | None) -> Batch:
        if not self._reader.blobs:  # nothing is live
            return Batch(np.empty(0, np.int64), [], [], np.empty((0, 0), np.float32))
        return _batch(self._reader.vectors_of(images, [self._reader.blob(blob)]))


def _batch(chunk: Chunk) -> Batch:
    (vectors,) = chunk.vectors.values()
    return Batch(
        np.array([image.image_id for image in chunk.images], np.int64),
        [image.root for image in chunk.images],
        [os.fsdecode(from_catalog(image.path)) for image in chunk.images],
        vectors.astype(np.float32, copy=False),
    )


def open_features(config: str | os.PathLike[str] | None) -> Features:
    """See `featd.open`."""
    return Features(*open_both(config))


def open_both(config: str | os.PathLike[str] | None) -> tuple[sa.Engine, Path]:
    """The catalog and the store of a configuration; None: of the one that the command would find. FeatdError."""
    settings = configuration.load(None if config is None else Path(config))
    catalog = connect.open_catalog(settings.catalog.url)
    try:
        migrate.check_schema(catalog)
        pairing.check(catalog, settings.store.path, writable=False)
    except BaseException:
        catalog.dispose()
        raise
    return catalog, settings.store.path
