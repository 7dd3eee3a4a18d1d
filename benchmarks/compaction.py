"""What compaction makes of a store that grows by single images: so many arrivals a second for some days of a simulated
clock, with real files and a real catalog.

    python benchmarks/compaction.py --folder /scratch --days 1 [--per-second 1] [--together 1] [--numbers 4096]

Arrivals are written by the functions that workers call, those of `together` seconds in one shard, and compaction does
what the janitor does each minute. Printed for each simulated hour or day: files in the store, and those that are
retired; bytes of files and catalog for each row, without vectors; how often each row was written; and the part of the
time that compaction takes. A month takes an hour with small vectors and `--together 120`.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from featd import clock
from featd.catalog import claim, connect, enqueue, instance, leases, migrate, schema, settle, stats
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

    def written(self, after_id: int) -> tuple[int, int]:
        """The newest shard, and the rows of those that are newer than `after_id`."""
        with connect.reading(self.catalog) as conn:
            which = schema.shards.c.id > after_id
            found = sa.select(sa.func.max(schema.shards.c.id), sa.func.sum(schema.shards.c.rows)).where(which)
            newest, rows = conn.execute(found).one()
        return newest or after_id, int(rows or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--per-second", type=int, default=1)
    parser.add_argument("--together", type=int, default=1, help="seconds whose arrivals are in one shard")
    parser.add_argument("--numbers", type=int, default=4096)
    arguments = parser.parse_args()
    simulated = Simulated()
    store = Store(arguments.folder, arguments.numbers)
    compaction = Compaction(store.catalog, store.store, "bench", LEASE_SECONDS)
    minutes = round(arguments.days * 1440)
    told_every = 60 if arguments.days <= 1 else 1440
    arriving = compacting = 0.0
    newest = written = 0
    for minute in range(minutes + 61):
        began = time.monotonic()
        until = (minute + 1) * 60
        while minute < minutes and simulated.seconds + arguments.together <= until:
            simulated.seconds += arguments.together
            store.arrive(arguments.per_second * arguments.together)
        if minute >= minutes:
            simulated.seconds += 60  # the time of grace
        arrived = time.monotonic()
        for _ in compaction.work():
            pass
        arriving += arrived - began
        compacting += time.monotonic() - arrived
        newest, rows = store.written(newest)
        written += rows
        if (minute + 1) % told_every == 0 or minute == minutes + 60:
            files, size = store.files()
            with connect.reading(store.catalog) as conn:
                totals = stats.shard_totals(conn)
            vectors = store.images * arguments.numbers * 4
            print(
                f"{(minute + 1) / 60:6.1f} h  {store.images:9,} images  {files:6,} files ({totals.retired:,} retired)"
                f"  bytes/row without vectors: {(size - vectors) / store.images:6.0f} in files,"
                f" {store.catalog_file.stat().st_size / store.images:4.0f} in the catalog"
                f"  each row written {written / store.images:4.2f} times"
                f"  compaction {compacting / (arriving + compacting):5.1%} of the time,"
                f" {compacting / (minute + 1):.2f} s a minute",
                flush=True,
            )
    print(f"full shards: {store.images / store.store.shard_rows:.1f}")


if __name__ == "__main__":
    main()
