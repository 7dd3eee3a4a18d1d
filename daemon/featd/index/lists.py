"""The lists of a large index: FAISS's inverted lists of codes (IVF with product quantisation), which give candidates
for a query. The codes are some tens of bytes for each vector and stay in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.errors import FeatdError

CODE_BYTES = 64
MOST_SIZE = 256
"""Numbers of a vector that are left for the codes: those along its principal components."""
TRAINED_EACH = 64
"""Vectors for each list that the lists are trained with."""
LEAST_TRAINED = 10_240
PRINCIPAL_SAMPLE = 20_000
SAMPLE_BYTES = 2**29
EFFORTS = ((8, 100), (16, 200), (32, 400), (64, 1000), (128, 2000), (256, 4000))
"""Lists that are looked through for a query, and candidates whose distance is computed: the first that finds enough."""
WANTED_RECALL = 0.98

Floats = npt.NDArray[np.float32]


def faiss() -> Any:
    """The library. FeatdError where it is not installed."""
    # Threads that wait for each other must not turn in circles: workers and decoders need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import faiss
    except ImportError:
        raise FeatdError(
            "so many vectors need FAISS, which is not installed: `pip install 'featd[search]'`"
        ) from None
    return faiss


class Lists:
    """Codes of vectors by row number."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def trained(cls, size: int, rows: int, sample: Callable[[int], Iterator[Floats]]) -> Lists:
        """Empty lists for some `rows` vectors of `size` numbers. sample: so many of them at random, in parts; fewer
        where there are fewer."""
        library = faiss()
        count = max(1, int(2 * rows**0.5))
        coded = min(size, MOST_SIZE)
        code = min(CODE_BYTES, coded)
        coded = -(-coded // code) * code
        wide = size > coded
        turn = library.PCAMatrix(size, coded, 0, True) if wide else library.RandomRotationMatrix(size, coded)
        few = min(PRINCIPAL_SAMPLE, max(2 * coded, SAMPLE_BYTES // (4 * size)))
        turn.train(np.concatenate(list(sample(few))))
        inner = library.IndexIVFPQ(library.IndexFlatL2(coded), coded, count, code, 8)
        many = max(TRAINED_EACH * count, LEAST_TRAINED)
        inner.train(np.concatenate([turn.apply(part) for part in sample(many)]))
        return cls(library.IndexPreTransform(turn, inner))

    @classmethod
    def read(cls, data: bytes) -> Lists:
        """What `dump` gave."""
        return cls(faiss().deserialize_index(np.frombuffer(data, np.uint8)))

    def dump(self) -> bytes:
        data: bytes = faiss().serialize_index(self._index).tobytes()
        return data

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Floats) -> None:
        """The next rows (n, size)."""
        self._index.add(vectors)

    def near(
        self, queries: Floats, probes: int, count: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Rows (q, count) that are likely nearest, -1 where there are fewer; and the distances of their codes."""
        faiss().extract_index_ivf(self._index).nprobe = probes
        squares, rows = self._index.search(queries, min(count, max(1, len(self))))
        return np.sqrt(np.maximum(squares, 0)), rows


def least_effort(
    find: Callable[[Floats, int, int], list[npt.NDArray[np.int64]]], queries: Floats, truth: Any
) -> tuple[int, int]:
    """The least of EFFORTS with which `find` (queries, probes, candidates) gives the rows of `truth`, else the last."""
    for probes, candidates in EFFORTS:
        found = find(queries, probes, candidates)
        hits = [len(np.intersect1d(one, true)) for one, true in zip(found, truth, strict=True)]
        if sum(hits) >= WANTED_RECALL * sum(map(len, truth)):
            break
    return probes, candidates
