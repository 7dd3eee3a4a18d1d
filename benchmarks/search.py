"""How many of the true nearest neighbours an index finds, how soon, and how long it takes to make; how long duplicates
take; and the time and memory of the whole command `featd search`.

    python benchmarks/search.py --folder /tmp/bench --rows 1000000 --size 256
    python benchmarks/search.py --folder /tmp/bench --gist 30000
    python benchmarks/search.py --folder /tmp/bench --command 131072 --size 1024

The first uses synthetic vectors in clusters, of which one in a hundred has a near copy. The second uses vectors of the
built-in net, of crops of photographs, with lists whatever their number. Both compare with the distances from every
vector in one matrix product, which is also the time that a search is compared with. The third fills a store.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from featd.config import ModelConfig, PreprocessConfig
from featd.index import files
from featd.index.files import Appender, Head, Stored
from featd.index.index import Index, encoded, is_large
from featd.preprocess.apply import apply
from featd.search.pairs import components
from featd.worker.model import load_model

Floats = npt.NDArray[np.float32]
NEAREST = 10
QUERIES = 100
PART = 20_000
COPY_EACH = 100
"""One vector in so many has a near copy."""


def clustered(rows: int, size: int, clusters: int) -> Iterator[Floats]:
    random = np.random.default_rng(1)
    middles = random.standard_normal((clusters, size), dtype=np.float32)
    for at in range(0, rows, PART):
        count = min(PART, rows - at)
        vectors = middles[random.integers(0, clusters, count)]
        vectors += 0.5 * random.standard_normal((count, size), dtype=np.float32)
        copies = np.arange(1, count, COPY_EACH)
        vectors[copies] = vectors[copies - 1] + 0.01 * random.standard_normal(
            (len(copies), size), dtype=np.float32
        )
        yield vectors


def photographs(rows: int) -> Iterator[Floats]:
    """Vectors of the built-in net: of crops of photographs, mirrored by turns."""
    from photographs import originals, variants

    model = load_model(ModelConfig(), PreprocessConfig(), "float32", "cpu", 2)
    sources = [variants(picture, seed) for seed, picture in enumerate(originals().values())]
    crops = (next(sources[at % len(sources)])[:, :: 1 - 2 * (at % 2)] for at in range(rows))
    while some := list(islice(crops, 64)):
        inputs = np.empty((len(some), *model.preprocess.shape), np.float32)
        for picture, target in zip(some, inputs, strict=True):
            apply(np.ascontiguousarray(picture), model.preprocess, target)
        yield model.engine.forward(inputs)["gist"]


def make(folder: Path, parts: Iterator[Floats], dtype: str) -> Index:
    """An index of images 1, 2, ... without lists."""
    appender, tables, rows = None, [], 0
    for part in parts:
        if appender is None:
            head = Head("instance", "fingerprint", "blob", "0.h", dtype, part.shape[1])
            appender = Appender(folder, head)
        stored, table = encoded(part, dtype)
        table["id"], table["version"] = np.arange(rows, rows + len(part)) + 1, 1
        appender.append(stored)
        tables.append(table)
        rows += len(part)
    assert appender is not None
    appender.finish()
    head = files.publish(folder, head, np.concatenate(tables), None, None)
    return Index(folder, head, Stored(folder, head))


def truth(index: Index, queries: Floats) -> tuple[list[set[int]], float]:
    """The ids of the nearest to each query, and the seconds that one query takes so."""
    began = time.monotonic()
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    at = 0
    lengths = np.einsum("ij,ij->i", queries, queries)[:, None]
    for part in index.parts(index.rows()):
        squares = lengths + np.einsum("ij,ij->i", part, part) - 2 * queries @ part.T
        for row, found in zip(squares, best, strict=True):
            near = np.argpartition(row, min(NEAREST, len(row) - 1))[:NEAREST]
            found += [(float(row[one]), at + int(one) + 1) for one in near]
            found.sort()
            del found[NEAREST:]
        at += len(part)
    seconds = (time.monotonic() - began) / len(queries)
    return [{image for _, image in found} for found in best], seconds


def measure(folder: Path, parts: Iterator[Floats], large: bool | None, within: float) -> None:
    began = time.monotonic()
    first = next(parts)
    rest = [first]

    def all_parts() -> Iterator[Floats]:
        yield rest.pop()
        yield from parts

    index = make(folder, all_parts(), "float16" if large else "float32")
    print(f"{len(index):,} vectors of {index.head.size} numbers stored in {time.monotonic() - began:.0f} s")
    if large:
        began = time.monotonic()
        index.make_lists()
        print(
            f"lists made in {time.monotonic() - began:.0f} s: {index.head.probes} of them looked through,"
            f" {index.head.candidates} candidates"
        )
    random = np.random.default_rng(2)
    chosen = np.sort(random.choice(index.rows(), (QUERIES, 2), replace=False), axis=0)
    queries = 0.7 * index.vectors(chosen[:, 0]) + 0.3 * index.vectors(chosen[:, 1])
    began = time.monotonic()
    opened = Index.open(folder)
    assert opened is not None
    opened.search(queries[:1], NEAREST)
    print(f"opened, and the first answer: {time.monotonic() - began:.2f} s")
    took, answers = [], []
    for query in queries:
        began = time.monotonic()
        answers.append({near.image_id for near in opened.search(query[None], NEAREST)[0]})
        took.append(time.monotonic() - began)
    print(f"peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    true, each = truth(opened, queries)
    recall = sum(len(answer & one) for answer, one in zip(answers, true, strict=True)) / (NEAREST * QUERIES)
    median = statistics.median(took)
    print(
        f"recall@{NEAREST} {recall:.3f}; an answer {1000 * median:.1f} ms (median), {each / median:.1f} times as"
    )
    print(f"fast as a query of the matrix product over all vectors, {QUERIES} at once")
    began = time.monotonic()
    groups = components(opened, within)
    print(f"duplicates: {len(groups):,} groups in {time.monotonic() - began:.0f} s")


def command(folder: Path, rows: int, size: int) -> None:
    """The whole `featd search` on a store of random vectors."""
    from featd.catalog import connect, feed
    from filled import Filled

    made = Filled(folder / "instance", f"sqlite:///{folder}/featd.db", (folder / "images",), {"fc7": size})
    random = np.random.default_rng(0)
    made.vectors = lambda ids, size: random.random((len(ids), size), np.float32)  # type: ignore[method-assign]
    for at in range(rows // 1000):
        made.done([f"{at:05}/{row:04}.jpg" for row in range(1000)])
    while connect.transact(made.catalog, feed.number):
        pass
    asked = [sys.executable, "-m", "featd_cli.main", "--config", str(made.config)]
    for what in (["index"], ["search", "00003/0007.jpg"], ["search", "00004/0007.jpg"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        began = time.monotonic()
        subprocess.run([*asked, *what], check=True, stdout=subprocess.DEVNULL)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        more = "" if peak > before else "at most "
        print(f"featd {' '.join(what)}: {time.monotonic() - began:.1f} s, {more}{peak / 1e6:.2f} GB")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--size", type=int, default=256)
    arguments.add_argument("--clusters", type=int, default=1000)
    arguments.add_argument("--gist", type=int, default=0)
    arguments.add_argument("--command", type=int, default=0)
    chosen = arguments.parse_args()
    folder = chosen.folder / "search"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if chosen.command:
        command(folder, chosen.command, chosen.size)
    elif chosen.gist:
        measure(folder, photographs(chosen.gist), True, 0.02)
    else:
        large = is_large(chosen.rows, chosen.size)
        measure(folder, clustered(chosen.rows, chosen.size, chosen.clusters), large, 0.05 * chosen.size**0.5)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
