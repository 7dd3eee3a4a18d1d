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
from featd.catalog import connect, counters, feed, instance, live, migrate, pairing
from featd.catalog.feed import Token
from featd.catalog.live import LiveVector
from featd.errors import AmbiguousPathError, ModelError
from featd.paths import from_catalog, to_catalog
from featd.reader.vectors import LiveReader
from featd.shards.read import ShardReader
from featd.shards.verify import Verified
from featd.states import State

CHANGES = 100
"""Changes that are looked up at once; each is of up to some thousand images."""


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
        self._store = store
        self._readers: dict[str, LiveReader] = {}
        self._blobs: dict[str, int] = {}
        self._verified = Verified()

    @property
    def blobs(self) -> dict[str, int]:
        """Name -> size of its vectors, in the order of the configuration; empty before the first image is done."""
        if not self._blobs:
            with connect.reading(self._catalog) as conn:
                some = live.live_vectors(conn, 0, 1)
            if some:
                with ShardReader(self._store / some[0].shard_path) as shard:
                    self._blobs = dict(shard.blobs)
        return self._blobs

    @property
    def token(self) -> str:
        """Where the feed of changes stands now. Take it before you read everything, and go on with `changes`."""
        with connect.reading(self._catalog) as conn:
            return str(feed.now(conn))

    def __len__(self) -> int:
        """How many vectors are live."""
        with connect.reading(self._catalog) as conn:
            return counters.counts(conn)[State.DONE]

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
        batch = self._batch(found, blob)
        if not len(batch.ids):
            raise KeyError(path)
        vector: npt.NDArray[np.float32] = batch.vectors[0]
        return vector

    def batches(self, blob: str | None = None, rows: int = 65_536) -> Iterator[Batch]:
        """All live vectors of a blob (the first), in order of image id, up to `rows` in a batch. Memory holds one."""
        for images in live.walk_live(self._catalog, rows):
            batch = self._batch(images, blob)
            if len(batch.ids):
                yield batch

    def changes(self, since: str, blob: str | None = None) -> Iterator[Change]:
        """What became of the images since a token, up to now. TokenError where it leads nowhere: begin anew."""
        token = Token.parse(since)
        while True:
            with connect.reading(self._catalog) as conn:
                found = feed.changes(conn, token, CHANGES)
            if found.token != token:
                deleted = np.array([one.image_id for one in found.deleted], np.int64)
                yield Change(self._batch(found.upserts, blob), deleted, str(found.token))
            token = found.token
            if not found.left:
                return

    def close(self) -> None:
        """Give back the connection to the catalog."""
        self._catalog.dispose()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _batch(self, images: Sequence[LiveVector], blob: str | None) -> Batch:
        """The vectors of those of `images` that still are live."""
        if not images:
            size = self.blobs.get(blob or next(iter(self.blobs), ""), 0)
            return Batch(np.empty(0, np.int64), [], [], np.empty((0, size), np.float32))
        chunk = self._reader(blob).vectors_of(images)
        if not chunk.images:
            return self._batch((), blob)
        return Batch(
            np.array([one.image_id for one in chunk.images], np.int64),
            [one.root for one in chunk.images],
            [os.fsdecode(from_catalog(one.path)) for one in chunk.images],
            chunk.vectors.astype(np.float32, copy=False),
        )

    def _reader(self, blob: str | None) -> LiveReader:
        blob = next(iter(self.blobs)) if blob is None else blob
        if blob not in self.blobs:
            raise ModelError(f"no blob {blob!r} in this catalog; it has: {', '.join(self.blobs)}")
        if blob not in self._readers:
            with connect.reading(self._catalog) as conn:
                fingerprint = instance.fingerprint(conn)
            self._readers[blob] = LiveReader(
                self._catalog, self._store, blob, fingerprint or "", self._verified
            )
        return self._readers[blob]


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
