"""The nearest of a blob's vectors: an index in memory, as its files say and with the changes since.

Up to EXACT_BYTES of vectors are kept as they are, and every one is compared. More are kept as float16, and compared
where the lists say that they may be near. Distances are Euclidean; those of float16 copies differ by some 1e-4 of a
vector's length from those of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.catalog.feed import Token
from featd.catalog.live import LiveVector
from featd.errors import FeatdError
from featd.index import files
from featd.index.files import NONE, ROW, Appender, Head, Stored
from featd.index.lists import Floats, Lists, least_effort

EXACT_BYTES = 512 * 1024 * 1024
LEAST_LISTED = 10_000
"""Fewer vectors are always compared one by one."""
NEAREST = 10
TRIED = 100
_PART_BYTES = 32 * 1024 * 1024
_SLACK = 1e-5
"""Of the squared lengths: by more than this, a squared distance is not wrong that was computed from products."""
_MOST_CLOSE = 10_000

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Near:
    """A vector near to a query: the image and the version that it is of, and its distance."""

    image_id: int
    version: int
    distance: float


class Index:
    """Use `search`; `replace` and `remove` change it in memory, and `save` writes that."""

    def __init__(self, folder: Path, head: Head, stored: Stored | None) -> None:
        self.folder = folder
        self._stored = stored
        self.head = head
        self.reached: Token | None = None
        """Up to where in the feed it has the changes, where that is more than is stored."""
        self._table = np.empty(0, ROW) if stored is None else stored.table
        self._fresh: list[
            npt.NDArray[Any]
        ] = []  # vectors behind those that are stored, as they are to be stored
        self._weights: tuple[Floats, float] | None = None
        self._lists: Lists | None = None
        if stored is not None and files.LISTS in (head.checksums or {}):
            self._lists = Lists.read(stored.path(files.LISTS).read_bytes())

    @classmethod
    def open(cls, folder: Path) -> Index | None:
        """None where there is none. IndexDamagedError."""
        for _ in range(10):  # while it is open, a writer may replace it
            head = files.read_head(folder)
            if head is None:
                return None
            try:
                return cls(folder, head, Stored(folder, head))
            except FileNotFoundError as error:
                missing = error
        raise files.IndexDamagedError(f"{missing.filename}: missing")

    def __len__(self) -> int:
        """How many images it has."""
        return int(np.count_nonzero(self._table["id"] != NONE))

    @property
    def is_exact(self) -> bool:
        return self._lists is None

    @property
    def changed_bytes(self) -> int:
        """Of vectors that `save` would write."""
        return sum(part.nbytes for part in self._fresh)

    @property
    def is_worn(self) -> bool:
        """Whether it should be made anew: most of its rows are no image's, or it has grown beyond what is compared one
        by one."""
        live = len(self)
        return len(self._table) > 2 * live + LEAST_LISTED or (
            self.is_exact and is_large(live, self.head.size)
        )

    def images_at(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """The ids and versions (n,) of the images of some rows."""
        return self._table["id"][rows], self._table["version"][rows]

    def rows(self) -> Rows:
        """The rows (n,) that are an image's."""
        return np.flatnonzero(self._table["id"] != NONE)

    def lengths(self) -> Floats:
        """The length of each vector (n,), in the order of `rows`."""
        live = self._table[self.rows()]
        lengths: Floats = np.sqrt(live["norm"]) * live["scale"]
        return lengths

    # Changes.

    def outdated(self, images: Sequence[LiveVector]) -> list[LiveVector]:
        """Those of `images` whose present version it does not have."""
        lines = self._table[np.isin(self._table["id"], [one.image_id for one in images])]
        has = set(zip(lines["id"].tolist(), lines["version"].tolist(), strict=True))
        return [one for one in images if (one.image_id, one.version) not in has]

    def replace(self, ids: Sequence[int], versions: Sequence[int], vectors: Floats) -> None:
        """The present vectors (n, d) of these images. FeatdError where their size is another one."""
        if vectors.shape[1] != self.head.size:
            raise FeatdError(f"vectors of {vectors.shape[1]} numbers do not fit an index of {self.head.size}")
        self.remove(ids)
        stored, lines = encoded(vectors, self.head.dtype)
        lines["id"], lines["version"] = ids, versions
        self._fresh.append(stored)
        self._table = np.concatenate([self._table, lines])
        self._weights = None

    def remove(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """These images have no vector any more."""
        gone = np.isin(self._table["id"], ids)
        if gone.any():
            self._table = self._table.copy()
            self._table["id"][gone] = NONE
            self._weights = None

    def save(self, token: str) -> None:
        """Write what has changed. `token`: the changes up to there are in it. By the only writer.
        StoreUnavailableError."""
        appender = Appender(self.folder, self.head)
        try:
            for part in self._fresh:
                appender.append(part)
            appender.finish()
        finally:
            appender.close()
        if self._lists is not None:
            for part in self.parts(np.arange(self.head.rows, len(self._table))):
                self._lists.add(part)
        self._publish(replace(self.head, token=token), self._lists)

    def make_lists(self, seed: int = 0) -> None:
        """Make the lists of all rows, which are stored already, and find out how much of them a query looks through."""
        random = np.random.default_rng(seed)
        rows = self.rows()

        def sample(count: int) -> Iterator[Floats]:
            return self.parts(np.sort(random.choice(rows, min(count, len(rows)), replace=False)))

        self._lists = Lists.trained(self.head.size, len(rows), sample)
        for part in self.parts(np.arange(len(self._table))):
            self._lists.add(part)
        queries = np.concatenate(list(sample(TRIED)))
        truth = [self._nearest_of(query, rows)[0] for query, rows in self._by_products(queries, NEAREST)]
        probes, candidates = least_effort(self._found, queries, truth)
        self._publish(replace(self.head, probes=probes, candidates=candidates), self._lists)

    def _publish(self, head: Head, lists: Lists | None) -> None:
        head = files.publish(
            self.folder, head, self._table, None if lists is None else lists.dump(), self._stored
        )
        self._stored, self.head, self._fresh = Stored(self.folder, head), head, []

    # Search.

    def search(self, queries: Floats, count: int) -> list[list[Near]]:
        """The nearest images to each query (q, d), the nearest first. FeatdError where the size of the queries is
        another one; IndexDamagedError."""
        if queries.shape[1] != self.head.size:
            raise FeatdError(
                f"these vectors have {queries.shape[1]} numbers, those of blob {self.head.blob!r} have {self.head.size}"
            )
        if self._lists is None:
            chosen = list(self._by_products(queries, count))
        else:
            queries = decoded(*encoded(queries, self.head.dtype))
            some = self._candidates(queries, self.head.probes, max(self.head.candidates, 4 * count))
            chosen = list(zip(queries, some, strict=True))
        found = []
        for query, rows in chosen:
            nearest, distances = self._nearest_of(query, rows, count)
            lines = self._table[nearest].tolist()
            found.append(
                [Near(line[0], line[1], far) for line, far in zip(lines, distances.tolist(), strict=True)]
            )
        return found

    def code_distances(self, queries: Floats, probes: int, count: int) -> tuple[Floats, Rows]:
        """Distances of codes (q, count), and their rows; -1 where there is none. The index has lists, and is saved."""
        assert self._lists is not None
        far, rows = self._lists.near(queries, probes, count)
        rows[self._table["id"][rows] == NONE] = -1
        return far, rows

    def vectors(self, rows: Rows) -> Floats:
        """Vectors (n, d) by row."""
        stored = self.head.rows
        if self._stored is None or not len(rows) or rows.min() >= stored:
            return decoded(self._fresh_rows(rows - stored), self._table[rows])
        if rows.max() < stored:
            return decoded(self._stored.rows(rows), self._table[rows])
        old = rows < stored
        found = np.empty((len(rows), self.head.size), np.float32)
        found[old], found[~old] = self.vectors(rows[old]), self.vectors(rows[~old])
        return found

    def parts(self, rows: Rows) -> Iterator[Floats]:
        """The same, some at a time."""
        of = max(1, _PART_BYTES // (4 * self.head.size))
        return (self.vectors(rows[at : at + of]) for at in range(0, len(rows), of))

    def _fresh_rows(self, rows: Rows) -> npt.NDArray[Any]:
        if len(self._fresh) > 1:
            self._fresh = [np.concatenate(self._fresh)]
        return self._fresh[0][rows] if self._fresh else np.empty((0, self.head.size), self.head.dtype)

    def _by_products(self, queries: Floats, count: int) -> Iterator[tuple[Floats, Rows]]:
        """Each query with all rows that can be among its `count` nearest. Distances from products of vectors are quick
        and not exact: what is close to the last one comes along."""
        if self._weights is None:  # a row that is no image's is far from everything
            weights = self._table["scale"].astype(np.float64) ** 2 * self._table["norm"]
            largest = float(weights.max(initial=0.0))
            weights[self._table["id"] == NONE] = np.inf
            self._weights = weights.astype(np.float32), largest
        weights, largest = self._weights
        of = max(1, 2**26 // max(1, len(weights)))
        for at in range(0, len(queries), of):
            some = queries[at : at + of]
            lengths = np.einsum("ij,ij->i", some, some, dtype=np.float64)
            squares = np.empty((len(some), len(weights)), np.float32)
            begin = 0
            for part in self._matrices():
                end = begin + len(part)
                np.matmul(some, part.T, out=squares[:, begin:end])
                begin = end
            squares *= -2
            squares += weights
            for query, length, row in zip(some, lengths, squares, strict=True):
                yield query, _closest(row, count, (float(length) + largest) * _SLACK)

    def _matrices(self) -> Iterator[Floats]:
        """All vectors in order of row, in large parts."""
        if self._stored is not None and self.head.dtype == "float32":
            yield self._stored.all()
            yield from self.parts(np.arange(self.head.rows, len(self._table)))
        else:
            yield from self.parts(np.arange(len(self._table)))

    def _found(self, queries: Floats, probes: int, candidates: int) -> list[Rows]:
        rows = self._candidates(queries, probes, candidates)
        return [self._nearest_of(query, some)[0] for query, some in zip(queries, rows, strict=True)]

    def _candidates(self, queries: Floats, probes: int, candidates: int) -> list[Rows]:
        assert self._lists is not None
        fresh = np.arange(self.head.rows, len(self._table))
        found = []
        for rows in self._lists.near(queries, probes, candidates)[1]:
            rows = np.concatenate([rows[rows >= 0], fresh])
            found.append(rows[self._table["id"][rows] != NONE])
        return found

    def _nearest_of(
        self, query: Floats, rows: Rows, count: int = NEAREST
    ) -> tuple[Rows, npt.NDArray[np.float64]]:
        """The nearest of some rows, and their distances."""
        squares = np.empty(len(rows))
        at = 0
        for part in self.parts(rows):
            far = part - query
            squares[at : at + len(part)] = np.einsum("ij,ij->i", far, far, dtype=np.float64)
            at += len(part)
        order = np.lexsort((self._table["id"][rows], squares))[:count]
        return rows[order], np.sqrt(squares[order])


def _closest(squares: Floats, count: int, slack: float) -> Rows:
    """Where the `count` least of `squares` can be, if each of them may be wrong by `slack`."""
    if count >= len(squares):
        rows = np.arange(len(squares))
    else:
        last = np.partition(squares, count - 1)[count - 1]
        rows = np.flatnonzero(squares <= last + 2 * slack)
        if len(rows) > max(_MOST_CLOSE, count):
            rows = rows[np.argsort(squares[rows], kind="stable")[: max(_MOST_CLOSE, count)]]
    return rows[np.isfinite(squares[rows])]


def is_large(rows: int, size: int) -> bool:
    """Whether so many vectors of `size` numbers get lists."""
    return rows >= LEAST_LISTED and rows * size * 4 > EXACT_BYTES


def encoded(vectors: Floats, dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Vectors (n, d) as an index stores them, and their lines of the table, without images. As float16, the largest
    number of each is 1: so nothing is too large, and little too small."""
    lines = np.zeros(len(vectors), ROW)
    scale = np.ones(len(vectors), np.float32)
    if dtype == "float16" and len(vectors):
        largest = np.abs(vectors).max(axis=1)
        scale = np.where(largest > 0, largest, 1).astype(np.float32)
    stored = (vectors / scale[:, None]).astype(dtype)
    lines["scale"] = scale
    lines["norm"] = np.einsum("ij,ij->i", stored, stored, dtype=np.float64)
    return stored, lines


def decoded(stored: npt.NDArray[Any], lines: npt.NDArray[Any]) -> Floats:
    """What `encoded` was given, as nearly as the index has it."""
    vectors: Floats = stored.astype(np.float32)
    if stored.dtype != np.float32:
        vectors *= lines["scale"][:, None]
    return vectors
