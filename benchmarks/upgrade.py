"""How long `featd db upgrade` takes on a large catalog of the first schema, how long it blocks a reader, and what it
takes to count and to requeue the images that a correction of pixels may concern.

    python benchmarks/upgrade.py --rows 10000000 \\
        --database sqlite:////tmp/bench.db --database postgresql+psycopg://me@/bench

Each database must be empty or absent: this makes its tables and leaves its rows behind. On PostgreSQL a migration locks
the tables that it changes until its transaction ends; a second process reads rows of `images` meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

import sqlalchemy as sa
from alembic import command

from featd.catalog import connect, corrections, counters, dialects, instance, migrate
from featd.catalog.counters import StateChanges
from featd.states import Correction, State

FROM = "0001"
BATCH = 1_000_000
ROOTS = ("/data/images",)
SHARD_ROWS = 4096
QUIET_SECONDS = 2.0
READ_PAUSE_SECONDS = 0.001
MOMENT = "'2026-08-01 12:00:00.000000'"
HASH = {"sqlite": "lower(hex(randomblob(16)))", "postgresql": "md5(CAST(n AS text))"}
Measured = dict[str, float]
Reads = list[tuple[float, float]]

# n counts from 0. Images from `pending` on wait; of those before, every hundredth has failed and the others are done,
# SHARD_ROWS to a shard in order of n. Every fiftieth is a TIFF.
IMAGES = f"""
INSERT INTO images (root, path, size, mtime_ns, version, state, priority, not_before, suspect, errors, crashes,
    error_kind, error, shard_id, shard_row, shard_version, content, updated_at)
SELECT '{ROOTS[0]}',
    'archive/2026/album-' || substr(CAST(100000 + n / 5000 AS text), 2)
        || '/IMG_' || substr(CAST(1000000000 + n AS text), 2) || CASE WHEN n % 50 = 7 THEN '.tif' ELSE '.jpg' END,
    100000 + n % 9973, 1790000000000000000 + n, 1, state, 0, {MOMENT}, false, 0, 0,
    CASE state WHEN 'failed' THEN 'decode.corrupt' END,
    CASE state WHEN 'failed' THEN 'not a JPEG file: starts with 0x00 0x00' END,
    CASE state WHEN 'done' THEN (n - n / 100) / {SHARD_ROWS} + 1 END,
    CASE state WHEN 'done' THEN (n - n / 100) % {SHARD_ROWS} END,
    CASE state WHEN 'done' THEN 1 END,
    CASE state WHEN 'done' THEN 'xxh3_128:' || {{hash}} END, {MOMENT}
FROM (SELECT n, CASE WHEN n >= {{pending}} THEN 'pending' WHEN n % 100 = 99 THEN 'failed' ELSE 'done' END AS state
    FROM series) AS numbered
"""
ATTEMPTS = f"""
INSERT INTO attempts (image_id, version, lease_id, at, kind, message)
SELECT 100 * (n + 1), 1, n / {SHARD_ROWS} + 1, {MOMENT}, 'decode.corrupt', 'not a JPEG file: starts with 0x00 0x00'
FROM series
"""
SHARDS = f"""
INSERT INTO shards (name, path, rows, live_rows, bytes, checksum, lease_id, engine, created_at)
SELECT name, 'shards/2026-08-01/' || name, live, live, 16384 * live, 'xxh3_128:' || {{hash}}, n / 100 + 1,
    'onnxruntime', {MOMENT}
FROM (SELECT n, '20260801T120000000000-' || (n / 100 + 1) || '-0123456789abcdef-' || (n % 100) || '.h5' AS name,
    CASE WHEN n < {{done}} / {SHARD_ROWS} THEN {SHARD_ROWS} ELSE {{done}} % {SHARD_ROWS} END AS live
    FROM series) AS numbered
"""
LEASES = f"""
INSERT INTO leases (token, host, pid, device, engine, started_at, expires_at, ended_at, end_reason, done, failed,
    settles, shares)
SELECT '0123456789abcdef', 'bench', 1000 + n, 'cpu:0', 'onnxruntime', {MOMENT}, 0, {MOMENT}, 'stopped', 0, 0, 0,
    '{{{{}}}}'
FROM series
"""


def fill(engine: sa.Engine, rows: int) -> None:
    """A catalog of the schema FROM with `rows` images."""

    def begin(conn: sa.Connection) -> None:
        config = migrate.alembic_config()
        config.attributes["connection"] = conn
        command.upgrade(config, FROM)
        instance.create_instance(conn)

    dialects.create_database(engine)
    connect.transact(engine, begin)
    pending = rows * 98 // 100
    failed = pending // 100
    done = pending - failed
    shards = -(-done // SHARD_ROWS)
    numbers = {"pending": pending, "done": done}
    _insert(engine, IMAGES, rows, **numbers)
    _insert(engine, ATTEMPTS, failed)
    _insert(engine, SHARDS, shards, **numbers)
    _insert(engine, LEASES, -(-shards // 100))
    changes = StateChanges({State.PENDING: rows - pending, State.FAILED: failed, State.DONE: done})
    connect.transact(engine, counters.apply, changes)


def _insert(engine: sa.Engine, statement: str, rows: int, **numbers: int) -> None:
    """Run `statement` for a `series` of the numbers below `rows`, BATCH of them in a transaction."""
    statement = statement.format(hash=HASH[engine.dialect.name], **numbers)

    def insert(conn: sa.Connection, first: int) -> None:
        dialects.lift_limits(conn)
        series = (
            f"WITH RECURSIVE series(n) AS (SELECT CAST({first} AS bigint) UNION ALL"
            f" SELECT n + 1 FROM series WHERE n + 1 < {min(first + BATCH, rows)})"
        )
        conn.execute(sa.text(series + statement))

    for first in range(0, rows, BATCH):
        connect.transact(engine, insert, first)


def settle_down(engine: sa.Engine) -> None:
    """What both databases do by themselves some time after so many inserts."""
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        dialects.lift_limits(conn)
        conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)" if sqlite else "VACUUM ANALYZE")
    engine.dispose()


def megabytes(engine: sa.Engine) -> float:
    """What the database has on disk."""
    size = "pg_database_size(current_database())"
    if engine.dialect.name == "sqlite":
        size = "page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with connect.reading(engine) as conn:
        return int(conn.exec_driver_sql(f"SELECT {size}").scalar_one()) / 1e6


def read(url: str, rows: int, ready: Any, stop: Any, done: Any) -> None:
    """Read one row of `images` after the other until `stop`; when each read began and how long it took."""
    # The limits that hold for featd's own statements follow from the lease: here nothing shall cut a read short.
    engine = connect.open_catalog(url, lease_seconds=86_400)
    reads: Reads = []
    while not stop.is_set():
        began = time.monotonic()
        with connect.reading(engine) as conn:
            row = {"id": 1 + len(reads) * 7919 % rows}
            conn.execute(sa.text("SELECT path, state FROM images WHERE id = :id"), row).one()
        reads.append((began, time.monotonic() - began))
        ready.set()
        time.sleep(READ_PAUSE_SECONDS)
    done.put(reads)
    engine.dispose()


def measure(url: str, rows: int) -> Measured:
    """Every figure for one database."""
    engine = connect.open_catalog(url)
    began = time.monotonic()
    fill(engine, rows)
    measured = {"fill, s": time.monotonic() - began}
    settle_down(engine)
    measured["size before, MB"] = megabytes(engine)

    spawn = multiprocessing.get_context("spawn")
    ready, stop, done = spawn.Event(), spawn.Event(), spawn.SimpleQueue()
    reader = spawn.Process(target=read, args=(url, rows, ready, stop, done), daemon=True)
    reader.start()
    ready.wait()
    time.sleep(QUIET_SECONDS)
    began = time.monotonic()
    migrate.upgrade(engine)
    ended = time.monotonic()
    stop.set()
    reads: Reads = done.get()
    reader.join()

    # Not the first, which connects.
    quiet = [seconds for at, seconds in reads[1:] if at + seconds < began]
    beside = [seconds for at, seconds in reads if at < ended and at + seconds > began]
    measured["upgrade, s"] = ended - began
    measured["size after, MB"] = megabytes(engine)
    measured["a read, median, ms"] = 1000 * statistics.median(quiet)
    measured["longest read before, ms"] = 1000 * max(quiet)
    measured["longest read meanwhile, ms"] = 1000 * max(beside, default=0.0)
    migrate.check_schema(engine)

    with connect.reading(engine) as conn:
        lacked = corrections.undecided(conn)
        began = time.monotonic()
        counted = corrections.count(conn, lacked, ROOTS)
        measured["count, s"] = time.monotonic() - began
    began = time.monotonic()
    requeued = corrections.requeue(engine, lacked, ROOTS)
    measured["requeue, s"] = time.monotonic() - began
    measured["requeued, images"] = requeued
    assert requeued == counted[Correction.TIFF_ALPHA] == rows * 98 // 100 // 50
    engine.dispose()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--database", action="append", required=True, help="address of an empty database; repeat it"
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    measured = [measure(url, options.rows) for url in options.database]
    names = [sa.make_url(url).get_backend_name() for url in options.database]
    print(f"{options.rows} rows, {FROM} to {migrate.head()}".ljust(32), *(f"{name:>12}" for name in names))
    for line in measured[0]:
        print(line.ljust(32), *(f"{one[line]:12,.2f}" for one in measured))


if __name__ == "__main__":
    main()
