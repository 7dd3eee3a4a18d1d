"""What compaction makes of a store that grows by single images: so many arrivals a second for some days of a simulated
clock, each sealed in a shard of its own second, with real files and a real catalog.

    python benchmarks/compaction.py --folder /scratch --days 1 --per-second 1 [--numbers 4096]

The arrivals of a minute are written by the functions that workers call, then compaction does what the janitor does each
minute. Printed for each simulated hour or day: files in the store, those that are retired, bytes of files and catalog
beside those of the vectors, and the part of the time that compaction takes.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from featd import clock
from featd.catalog import claim, connect, enqueue, instance, leases, migrate, settle, stats
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Identity, Made, Settlement
from featd.config import StoreConfig
from featd.janitor.compaction import Compaction
from featd.shards.layout import ShardName
from featd.shards.store import StoreKey, create_store, shards_folder
from featd.shards.write import ShardWriter
from featd.states import RetryPolicy

ROOT = "/data/images"
LEASE_SECONDS = 1e9
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Simulated:
    """The clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        clock.utcnow = lambda: BEGIN + timedelta(seconds=self.seconds)
        clock.boottime = lambda: self.seconds


class Store:
    """A worker and what it writes."""

    def __init__(self, folder: Path, numbers: int) -> None:
        self.numbers = numbers
        self.catalog_file = folder / "featd.db"
        self.catalog = connect.open_catalog(f"sqlite:///{self.catalog_file}")
        migrate.upgrade(self.catalog)
        self.store = StoreConfig(path=folder / "features")
        with connect.reading(self.catalog) as conn:
            self.instance = instance.instance_id(conn)
        create_store(self.store.path, StoreKey(self.instance))
        given = {
            "host": "bench",
            "pid": 1,
            "device": "cpu:0",
            "engine": "gist",
            "lease_seconds": LEASE_SECONDS,
        }
        self.lease = connect.transact(self.catalog, leases.open_lease, **given)
        self.images = 0

    def arrive(self, count: int) -> None:
        """So many images, in one shard."""
        found = [FoundFile(f"camera/{self.images + n:09}.jpg", 100_000, 1, 1) for n in range(count)]
        self.images += count
        connect.transact(self.catalog, enqueue.enqueue, ROOT, found)
        images = connect.transact(self.catalog, claim.claim, self.lease, count, [ROOT])
        name = ShardName(clock.utcnow(), self.lease.id, self.lease.token, self.images)
        attributes = {"instance": self.instance, "fingerprint": "f" * 64, "spec": "{}", "engine": "gist"}
        shard = ShardWriter(self.store.path, name, {"fc7": self.numbers}, attributes=attributes)
        contents = [f"xxh3_128:{image.id:032x}" for image in images]
        vectors = np.zeros((len(images), self.numbers), np.float32)
        vectors[:, 0] = [image.id for image in images]
        shard.append(images, contents, {"fc7": vectors})
        made = [Made(image, row, contents[row]) for row, image in enumerate(images)]
        identity = Identity("f" * 64, {"blobs": ["fc7"], "dtype": "float32"}, {})
        settlement = Settlement(shard.seal(), made)
        connect.transact(self.catalog, settle.settle, self.lease, settlement, identity, RetryPolicy())

    def files(self) -> tuple[int, int]:
        """How many there are, and their bytes."""
        sizes = [path.stat().st_size for path in shards_folder(self.store.path).rglob("*.h5")]
        return len(sizes), sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--per-second", type=int, default=1)
    parser.add_argument("--numbers", type=int, default=4096)
    arguments = parser.parse_args()
    simulated = Simulated()
    store = Store(arguments.folder, arguments.numbers)
    compaction = Compaction(store.catalog, store.store, "bench", LEASE_SECONDS)
    minutes = round(arguments.days * 1440)
    arriving = compacting = 0.0
    for minute in range(minutes + 61):
        began = time.monotonic()
        if minute < minutes:
            for _ in range(60):
                simulated.seconds += 1
                store.arrive(arguments.per_second)
        else:
            simulated.seconds += 60  # the time of grace
        arrived = time.monotonic()
        for _ in compaction.work():
            pass
        arriving += arrived - began
        compacting += time.monotonic() - arrived
        if (minute + 1) % 60 == 0 or minute == minutes + 60:
            files, size = store.files()
            with connect.reading(store.catalog) as conn:
                totals = stats.shard_totals(conn)
            vectors = store.images * arguments.numbers * 4
            beside = (size + store.catalog_file.stat().st_size - vectors) / store.images
            print(
                f"{(minute + 1) / 60:6.1f} h  {store.images:9,} images  {files:6,} files ({totals.retired:,} retired)"
                f"  {beside:8.0f} bytes/row beside vectors"
                f"  {size / vectors:5.2f} of the vectors on disk"
                f"  compaction {compacting / (arriving + compacting):5.1%} of the time,"
                f" {compacting / (minute + 1):.2f} s a minute",
                flush=True,
            )
    print(f"full shards of 64 MiB: {store.images * arguments.numbers * 4 / 2**26:.1f}")


if __name__ == "__main__":
    main()
