"""The nearest live vectors: what the index finds, checked against the catalog."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, live
from featd.catalog.live import LiveVector
from featd.errors import ConfigError, StoreUnavailableError
from featd.index.files import IndexDamagedError
from featd.index.index import Index, Near
from featd.index.update import Keeper
from featd.progress import Advance, silent
from featd.reader.features import open_both

log = logs.get("search")

MOST_CHANGES_BYTES = 64 * 1024 * 1024
"""Of vectors that are newer than the index in the store: with more, it is written anew."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image, and the Euclidean distance of its vector from the one that was asked about."""

    image: LiveVector
    distance: float


class Searcher:
    """Answers with live vectors only, as the feed stands when it is asked. The first question opens the index in the
    store, and makes it where there is none. Use in one thread."""

    def __init__(
        self, catalog: sa.Engine, store: Path, blob: str | None = None, advance: Advance = silent
    ) -> None:
        """blob: the first one if None. NothingMatchedError while no image is done; ModelError."""
        self._catalog = catalog
        self._keeper = Keeper(catalog, store, blob, advance)
        self._index: Index | None = None

    def close(self) -> None:
        """Give back the connection to the catalog."""
        self._catalog.dispose()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def blob(self) -> str:
        """The blob whose vectors are compared."""
        return self._keeper.blob

    @property
    def fingerprint(self) -> str:
        """That of the catalog's vectors."""
        return self._keeper.fingerprint

    def vector_of(self, image: LiveVector) -> npt.NDArray[np.float32] | None:
        """The vector (d,) of an image; None where it is live no more, or in a shard that cannot be read."""
        return self._keeper.vector_of(image)

    @property
    def unreadable(self) -> dict[str, str]:
        """Shard -> why its vectors are not found, as far as this searcher knows."""
        return self._keeper.unreadable

    def open(self) -> bool:
        """Open the index in the store, and make none: whether there is one that can be used."""
        self._index = self._keeper.open()
        return self._index is not None

    @property
    def index(self) -> Index:
        """The index as the feed stands now. StoreUnavailableError or ConfigError where it must be made, and cannot be
        written."""
        if self._index is None:
            self._index = self._keeper.open()
        elif not self._keeper.catch_up(self._index):
            self._index = None
        index = self._index
        if index is None:
            self._index = index = self._keeper.update()
        elif index.is_worn or index.changed_bytes > MOST_CHANGES_BYTES:
            try:
                self._index = index = self._keeper.update()
            except (
                StoreUnavailableError,
                ConfigError,
            ) as error:  # who may only read goes on with the changes in memory
                log.debug("index_not_written", "the index is not written", error=str(error))
        return index

    def saved_index(self) -> Index:
        """The index as it was when this searcher first asked for it, written to the store where that can be."""
        if self._index is None:
            try:
                self._index = self._keeper.update()
            except (StoreUnavailableError, ConfigError):
                return self.index
        return self._index

    def nearest(
        self, vectors: npt.NDArray[np.float32], count: int, without: Collection[int] = ()
    ) -> list[list[Neighbour]]:
        """The `count` nearest live vectors to each of `vectors` (q, d), the nearest first; fewer where there are fewer.
        without: ids of images that are left out. ValueError; FeatdError where they have another size than the blob's.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or count < 1 or not np.isfinite(vectors).all():
            raise ValueError("vectors must be finite and (q, d), and count at least 1")
        index = self.index
        asked = count + len(without)
        while True:
            try:
                found = index.search(vectors, asked)
            except IndexDamagedError as error:
                log.warning("index_damaged", "the index is damaged; it is made anew", error=str(error))
                self._index = index = self._keeper.update(anew=True)
                continue
            answers = self._live(found, without)
            whole = asked >= len(index) or all(len(answer) >= count for answer in answers)
            if whole:
                return [answer[:count] for answer in answers]
            asked *= 4

    def _live(self, found: Sequence[Iterable[Near]], without: Collection[int]) -> list[list[Neighbour]]:
        """Those whose vector is still the image's."""
        ids = sorted({near.image_id for some in found for near in some})
        with connect.reading(self._catalog) as conn:
            images = {one.image_id: one for one in live.live_of(conn, ids)}
        return [
            [
                Neighbour(image, near.distance)
                for near in some
                if near.image_id not in without
                and (image := images.get(near.image_id)) is not None
                and image.version == near.version
            ]
            for some in found
        ]


def open_searcher(config: str | os.PathLike[str] | None, blob: str | None) -> Searcher:
    """See `featd.searcher`."""
    catalog, store = open_both(config)
    try:
        return Searcher(catalog, store, blob)
    except BaseException:
        catalog.dispose()
        raise
