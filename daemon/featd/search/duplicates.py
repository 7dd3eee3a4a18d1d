"""Pictures that are there more than once: groups of images whose vectors are near to that of the best of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from featd.catalog import connect, live
from featd.catalog.live import LiveVector
from featd.errors import FeatdError, ImageError
from featd.images.header import probe
from featd.paths import from_catalog
from featd.progress import Advance, silent
from featd.search.pairs import Rows, components
from featd.search.searcher import Searcher

USUAL_PART = 0.1
"""Of a vector's usual length: how near the vectors of two versions of a picture usually are."""
ROUNDING = 1e-5
"""Of the usual distance: the same picture has not quite the same vector at another place of a batch."""
_HEAD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Copy:
    """An image of a group: the distance of its vector from the best one's, its pixels as stored (0 where the file
    cannot be read), and its file's size in bytes."""

    image: LiveVector
    distance: float
    width: int
    height: int
    size: int

    @property
    def goodness(self) -> tuple[int, int, int]:
        """The best has the most pixels, then bytes, then was there first."""
        return self.width * self.height, self.size, -self.image.image_id


class Finder:
    """Finds groups of images that are nearly the same picture."""

    def __init__(
        self,
        catalog: sa.Engine,
        store: Path,
        blob: str | None = None,
        advance: Advance = silent,
        roots: Mapping[str, str] | None = None,
    ) -> None:
        """As a Searcher. roots: what the catalog calls them -> their folders, where those have other names."""
        self._catalog = catalog
        self._searcher = Searcher(catalog, store, blob, advance)
        self._advance = advance
        self._roots = roots or {}

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Shard -> why its images are left out."""
        return self._searcher.unreadable

    @property
    def usual_distance(self) -> float:
        """The distance to use where none is given."""
        lengths = self._searcher.saved_index().lengths()
        return USUAL_PART * float(np.median(lengths)) if len(lengths) else 0.0

    def groups(self, within: float) -> list[list[Copy]]:
        """Groups of two or more, the largest first: the best image first, then the others, all within this distance of
        the best one, the nearest first."""
        index = self._searcher.saved_index()
        within = max(within, ROUNDING * self.usual_distance)
        found: list[list[Copy]] = []
        connected = components(index, within, self._advance)
        for at, rows in enumerate(connected):
            self._advance("looking at files", at, len(connected))
            found += self._groups_of(rows, within)
        return sorted(found, key=lambda group: (-len(group), group[0].image.image_id))

    def _groups_of(self, rows: Rows, within: float) -> Iterable[list[Copy]]:
        """Takes the best one and all that are near to it, again and again."""
        index = self._searcher.saved_index()
        ids, versions = index.images_at(rows)
        with connect.reading(self._catalog) as conn:
            images = {one.image_id: one for one in live.live_of(conn, sorted(ids.tolist()))}
        left = [
            (row, looked_at(images[image_id], self._roots))
            for row, image_id, version in zip(rows.tolist(), ids.tolist(), versions.tolist(), strict=True)
            if image_id in images and images[image_id].version == version
        ]
        left.sort(key=lambda one: one[1].goodness, reverse=True)
        while len(left) > 1:
            at = np.array([row for row, _ in left], np.int64)
            best = index.vectors(at[:1])[0].astype(np.float64)
            distances = np.concatenate([np.linalg.norm(part - best, axis=1) for part in index.parts(at)])
            distances[0] = 0.0
            near = [
                Copy(one.image, far, one.width, one.height, one.size)
                for (_, one), far in zip(left, distances.tolist(), strict=True)
                if far <= within
            ]
            if len(near) > 1:
                yield [near[0], *sorted(near[1:], key=lambda one: one.distance)]
            left = [one for one, far in zip(left, distances.tolist(), strict=True) if far > within]


def looked_at(image: LiveVector, roots: Mapping[str, str]) -> Copy:
    """An image, with what its file's header says. `roots`: as of a Finder."""
    file = Path(roots.get(image.root, image.root), os.fsdecode(from_catalog(image.path)))
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            head = opened.read(_HEAD_BYTES)
            try:
                found = probe(head)
            except ImageError:  # a long header
                found = probe(head + opened.read())
    except (OSError, FeatdError, MemoryError):
        return Copy(image, 0.0, 0, 0, 0)
    return Copy(image, 0.0, found.width, found.height, size)
