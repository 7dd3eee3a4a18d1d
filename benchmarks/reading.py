"""How fast `featd.open` reads all live vectors, side by side with plain h5py over the same shards.

    python benchmarks/reading.py --folder /tmp/bench --shards 24 --rounds 5

Shards hold 4,096 vectors of 4,096 numbers (64 MiB) and are in the page cache. Both are timed in turn and in this one
process: featd with its comparison of every shard's checksum, and h5py as it is, which compares HDF5's own. h5py reads
as many vectors at once as featd, but at least a shard: memory that is new to a process costs as much as reading. With
--window N, the rows of a shard are in the order of their images but for places among N, as decoders finish.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from verify import ROWS, WIDTH, fill_store

import featd


def timed(read: Callable[[], int]) -> tuple[int, float]:
    began = time.monotonic()
    count = read()
    return count, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the shards are made, 64 MiB each")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="of a batch; left out, as many as take 30 MB")
    parser.add_argument("--window", type=int, default=1)
    options = parser.parse_args()
    made = fill_store(options.folder / "reading", options.shards, options.window)
    files = sorted((made.store / "shards").rglob("*.h5"))
    size = options.shards * ROWS * WIDTH * 4 / 1e6

    def plain() -> int:
        count, together = 0, max(1, (options.rows or ROWS) // ROWS)
        for start in range(0, len(files), together):
            vectors = np.empty((together * ROWS, WIDTH), np.float32)
            for at, path in enumerate(files[start : start + together]):
                with h5py.File(path) as shard:
                    shard["feats"].read_direct(vectors, dest_sel=np.s_[at * ROWS : (at + 1) * ROWS])
                    count += ROWS
        return count

    def mine() -> int:
        with featd.open(made.config) as features:
            return sum(len(batch.vectors) for batch in features.batches(rows=options.rows))

    assert timed(plain)[0] == timed(mine)[0] == options.shards * ROWS
    print(
        f"{len(files)} shards, {size:,.0f} MB, batches of {options.rows or '30 MB'}, window {options.window}"
    )
    print("| round | h5py | featd | featd / h5py |\n|---|---|---|---|")
    ratios = []
    for at in range(options.rounds):
        other, own = timed(plain)[1], timed(mine)[1]
        ratios.append(other / own)
        print(f"| {at} | {size / other:,.0f} MB/s | {size / own:,.0f} MB/s | {ratios[-1]:.2f} |", flush=True)
    print(f"median: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
