"""Which vectors of an index are within a distance of each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from featd.index.index import Index
from featd.index.lists import Floats, faiss
from featd.progress import Advance, silent

ALL_PAIRS = 20_000
"""Up to so many vectors, each is compared with each."""
NEIGHBOURS = 50
PROBES = 8
_SURE = 0.999

Rows = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]
"""(n, 2) rows."""


def components(index: Index, within: float, advance: Advance = silent) -> list[Rows]:
    """Rows of the index that pairs of vectors within this distance connect: two or more in each. Where there are many
    vectors, only each one's NEIGHBOURS nearest are looked at, and a pair may be missed."""
    rows = index.rows()
    first, twins = _identical(index, rows)
    links = [twins]
    links.extend(_near_pairs(index, first, within, advance))
    return _connected(np.concatenate(links))


def _identical(index: Index, rows: Rows) -> tuple[Rows, Pairs]:
    """One row for each different vector, and a pair of it and each other row that has the same."""
    hashes = np.empty(len(rows), np.uint64)
    at = 0
    for part in index.parts(rows):
        part += 0.0  # -0.0 is 0.0
        for vector in part:
            hashes[at] = xxhash.xxh3_64_intdigest(vector.data)
            at += 1
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = np.stack([rows[first[which]], rows], axis=1)
    return rows[np.sort(first)], pairs[pairs[:, 0] != pairs[:, 1]]


def _near_pairs(index: Index, rows: Rows, within: float, advance: Advance) -> Iterator[Pairs]:
    if len(rows) <= ALL_PAIRS:
        yield from _all_pairs(index, rows, within, advance)
    elif index.is_exact:
        yield from _listed_pairs(index, rows, within, advance)
    else:
        yield from _coded_pairs(index, rows, within, advance)


def _all_pairs(index: Index, rows: Rows, within: float, advance: Advance) -> Iterator[Pairs]:
    vectors = index.vectors(rows)
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    of = max(1, 2**24 // max(1, len(rows)))
    for at in range(0, len(rows), of):
        advance("comparing vectors", at, len(rows))
        some = vectors[at : at + of]
        apart = squares[at : at + of, None] + squares[at:] - 2.0 * (some @ vectors[at:].T)
        # Products are not exact: what may be near is compared once more.
        slack = 1e-5 * (squares[at : at + of, None] + squares[at:])
        one, other = np.nonzero(np.triu(apart <= within**2 + slack, 1))
        yield _checked(index, np.stack([rows[at + one], rows[at + other]], axis=1), within)


def _listed_pairs(index: Index, rows: Rows, within: float, advance: Advance) -> Iterator[Pairs]:
    """By lists of whole vectors, which are made for this."""
    library = faiss()
    size, count = index.head.size, int(2 * len(rows) ** 0.5)
    lists = library.IndexIVFFlat(library.IndexFlatL2(size), size, count)
    random = np.random.default_rng(0)
    advance("making lists", 0, 0)
    lists.train(index.vectors(np.sort(random.choice(rows, min(len(rows), 64 * count), replace=False))))
    for part in index.parts(rows):
        lists.add(part)
    lists.nprobe = PROBES
    at = 0
    for part in index.parts(rows):
        squares, found = lists.search(part, NEIGHBOURS)
        near = (found >= 0) & (squares <= within**2 + 1e-5 * np.einsum("ij,ij->i", part, part)[:, None])
        one, place = np.nonzero(near)
        pairs = np.stack([rows[at + one], rows[found[one, place]]], axis=1)
        yield _checked(index, pairs[pairs[:, 0] < pairs[:, 1]], within)
        at += len(part)
        advance("comparing vectors", at, len(rows))


def _coded_pairs(index: Index, rows: Rows, within: float, advance: Advance) -> Iterator[Pairs]:
    """By the codes of a large index: those that may be near by their codes are compared by their vectors."""
    random = np.random.default_rng(0)
    sample = np.sort(random.choice(rows, min(len(rows), 2000), replace=False))
    # A vector is as far from another one's code as from the other one, give or take the error of that code.
    errors, own = index.code_distances(index.vectors(sample), PROBES, NEIGHBOURS)
    mine = errors[own == sample[:, None]]
    farthest = within + (float(np.quantile(mine, _SURE)) if len(mine) else within)
    at = 0
    for part in index.parts(rows):
        far, found = index.code_distances(part, PROBES, NEIGHBOURS)
        one, place = np.nonzero((found >= 0) & (far <= farthest))
        pairs = np.stack([rows[at + one], found[one, place]], axis=1)
        pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
        yield _checked(index, pairs, within)
        at += len(part)
        advance("comparing vectors", at, len(rows))


def _checked(index: Index, pairs: Pairs, within: float) -> Pairs:
    """Those that are within the distance by their vectors."""
    good = np.zeros(len(pairs), bool)
    of = max(1, 2**23 // index.head.size)
    for at in range(0, len(pairs), of):
        some = pairs[at : at + of]
        apart = _distances(index.vectors(some[:, 0]), index.vectors(some[:, 1]))
        good[at : at + of] = apart <= within
    return pairs[good]


def _distances(some: Floats, others: Floats) -> npt.NDArray[np.float64]:
    far = some - others
    distances: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", far, far, dtype=np.float64))
    return distances


def _connected(pairs: Pairs) -> list[Rows]:
    """The rows that pairs connect, directly or through others."""
    above: dict[int, int] = {}

    def top(row: int) -> int:
        while (higher := above.get(row, row)) != row:
            above[row] = row = above.get(higher, higher)
        return row

    for one, other in pairs.tolist():
        above.setdefault(one, one)
        above.setdefault(other, other)
        above[top(one)] = top(other)
    members: dict[int, list[int]] = {}
    for row in sorted(above):
        members.setdefault(top(row), []).append(row)
    return [np.array(rows, np.int64) for rows in members.values()]
