"""How fast `featd verify` reads shards, side by side with `xxhsum -H2` over the same files; and its time and memory for
a catalog of many rows.

    python benchmarks/verify.py --folder /tmp/bench --shards 32 --rounds 3
    python benchmarks/verify.py --folder /tmp/bench --database sqlite:////tmp/bench/many.db --rows 10000000

The first makes shards of 4,096 vectors of 4,096 numbers (64 MiB each) and compares both, each with its files out of the
page cache and then in it. xxhsum is in Debian's package xxhash. The second fills the catalog as benchmarks/upgrade.py
does: the database must be empty or absent. Its shards have no files, so it also tells how long a repair takes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from featd import config
from featd.catalog import connect, migrate, pairing
from featd.catalog.settle import Settlement
from featd.shards.store import create_store
from featd.verify import repair, verify
from filled import Filled

WIDTH = 4096
ROWS = 4096


def fill_store(folder: Path, shards: int, window: int = 1) -> Filled:
    """An instance with `shards` full shards of random numbers, whose rows are in the order of the images but for places
    within a window."""
    shutil.rmtree(folder, ignore_errors=True)
    made = Filled(folder, f"sqlite:///{folder}/featd.db", (folder / "images",), {"fc7": WIDTH})
    random = np.random.default_rng(0)
    made.vectors = lambda ids, size: random.random((len(ids), size), np.float32)  # type: ignore[method-assign]
    for at in range(shards):
        made.enqueue([f"album-{at:05}/IMG_{row:08}.jpg" for row in range(ROWS)])
        images = made.claim(ROWS)
        order = np.lexsort((random.random(ROWS), np.arange(ROWS) // window))
        shard, rows = made.seal([images[at] for at in order])
        made.settle(Settlement(shard, rows))
    made.end_lease()
    return made


def forget(files: list[Path]) -> None:
    """Take the files out of the page cache."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def compare(folder: Path, shards: int, rounds: int) -> None:
    made = fill_store(folder / "speed", shards)
    files = sorted((made.store / "shards").rglob("*.h5"))
    size = sum(path.stat().st_size for path in files) / 1e6
    featd = [sys.executable, "-m", "featd_cli.main", "--config", str(made.config)]
    xxhsum = ["xxhsum", "-H2", *map(str, files)]
    start = min(timed([*featd, "roots", "list"]) for _ in range(3))
    print(f"{len(files)} shards, {size:,.0f} MB; start of a command {start:.2f} s, apart")
    print("| round | files | xxhsum | featd verify | featd / xxhsum |\n|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {"from the disk": [], "in the page cache": []}
    for at in range(rounds):
        for where, found in ratios.items():
            if where == "from the disk":
                forget(files)
            other = timed(xxhsum)
            if where == "from the disk":
                forget(files)
            mine = timed([*featd, "verify"]) - start
            found.append(other / mine)
            print(
                f"| {at} | {where} | {size / other:,.0f} MB/s | {size / mine:,.0f} MB/s | {found[-1]:.2f} |",
                flush=True,
            )
    for where, found in ratios.items():
        print(f"median {where}: {statistics.median(found):.2f}")


@dataclass
class Peak:
    """Memory of this process, in MB."""

    before: float = 0.0

    def now(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many_rows(folder: Path, url: str, rows: int) -> None:
    from upgrade import fill

    engine = connect.open_catalog(url)
    fill(engine, rows)
    migrate.upgrade(engine)
    with connect.reading(engine) as conn:
        key = pairing.store_key(conn)
    store = folder / f"many-{engine.dialect.name}"
    create_store(store, key)
    peak = Peak(Peak().now())

    def quiet(doing: str, done: int, total: int) -> None:
        pass

    began = time.monotonic()
    report = verify.verify(engine, store, quiet)
    took = time.monotonic() - began
    print(
        f"{engine.dialect.name}: verify of {rows:,} rows: {took:.0f} s, {peak.now() - peak.before:.0f} MB more"
    )
    print(f"  {len(report.shard_faults):,} shards missing, {report.faults:,} faults")
    began = time.monotonic()
    done = repair.repair(engine, store, report, (), quiet)
    print(
        f"  repair: {time.monotonic() - began:.0f} s, {done.images:,} images pending, {peak.now() - peak.before:.0f} MB"
    )
    with connect.reading(engine) as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM images WHERE shard_id IS NOT NULL")) == 0
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="a folder on the disk to measure")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--database", action="append", default=[], help="address of an empty database; repeat it"
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    assert config  # loaded before memory is measured
    for url in options.database:
        many_rows(options.folder, url, options.rows)
    if not options.database:
        compare(options.folder, options.shards, options.rounds)


if __name__ == "__main__":
    main()
