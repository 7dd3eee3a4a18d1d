"""How fast the catalog is: enqueue, rescan, claim and settle, on one or several databases side by side.

    python benchmarks/catalog.py --rows 200000 \\
        --database sqlite:////tmp/bench.db --database postgresql+psycopg://me@/bench

Each database must be empty or absent: this makes its tables and leaves its rows behind. Rates are rows a second;
the last column of each line is its ratio to the first database. `--explain` prints the plans of the hot statements.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import sqlalchemy as sa

from featd.catalog import claim, connect, enqueue, leases, live, migrate, retry, settle, stats
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Identity, Made, Settlement
from featd.states import PRIORITY_BACKLOG, Lease, RetryPolicy, SealedShard

ROOT = "/data/images"
IDENTITY = Identity("0" * 64, {}, {})
SCAN_BATCH = 2000
CLAIM_BATCH = 1024
Measured = dict[str, float]


def found(first: int, rows: int) -> list[FoundFile]:
    """Names and sizes as a real folder of photographs has them."""
    return [
        FoundFile(f"2026/{n // 5000:05d}/IMG_{n:09d}.jpg", 100_000 + n % 9973, 1_790_000_000_000_000_000 + n)
        for n in range(first, first + rows)
    ]


def scan(engine: sa.Engine, rows: int) -> float:
    """Seconds to bring the catalog up to a folder of `rows` files."""
    started = time.perf_counter()
    for first in range(0, rows, SCAN_BATCH):
        files = found(first, min(SCAN_BATCH, rows - first))
        connect.transact(engine, lambda conn, files=files: enqueue.enqueue(conn, ROOT, files))  # type: ignore[misc]
    return time.perf_counter() - started


def begin(engine: sa.Engine, device: str) -> Lease:
    return connect.transact(
        engine,
        lambda conn: leases.open_lease(
            conn, host="bench", pid=1, device=device, engine="none", lease_seconds=3600.0
        ),
    )


def work(url: str, device: str, rows: int, done: Any) -> None:
    """Claim and settle `rows` rows, as one worker would; the number and the seconds go into `done`."""
    engine = connect.open_catalog(url)
    lease = begin(engine, device)
    settled = 0
    claim_seconds = 0.0
    started = time.perf_counter()
    for serial in count():
        if settled >= rows:
            break
        asked = time.perf_counter()
        limit = min(CLAIM_BATCH, rows - settled)
        claimed = connect.transact(
            engine,
            lambda conn, limit=limit: claim.claim(conn, lease, limit, [ROOT]),  # type: ignore[misc]
        )
        claim_seconds += time.perf_counter() - asked
        if not claimed:
            break
        name = f"{lease.token}-{serial}"
        shard = SealedShard(name, f"shards/{name}", len(claimed), 4096 * len(claimed), "xxh3_128:0", "none")
        made = [Made(image, at, f"xxh3_128:{image.id:032x}") for at, image in enumerate(claimed)]
        connect.transact(
            engine,
            lambda conn, shard=shard, made=made: settle.settle(  # type: ignore[misc]
                conn, lease, Settlement(shard, made), IDENTITY, RetryPolicy()
            ),
        )
        settled += len(claimed)
    done.put((settled, time.perf_counter() - started, claim_seconds))
    engine.dispose()


def claim_and_settle(url: str, claimers: int, rows: int) -> tuple[float, float]:
    """Rows a second that `claimers` processes settle together, and the part of their time that claiming takes."""
    spawn = multiprocessing.get_context("spawn")
    done = spawn.SimpleQueue()
    workers = [
        spawn.Process(target=work, args=(url, f"none:{at}", rows // claimers, done)) for at in range(claimers)
    ]
    for worker in workers:
        worker.start()
    results = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(result[1] for result in results)
    return sum(result[0] for result in results) / seconds, sum(r[2] for r in results) / sum(
        r[1] for r in results
    )


def measure(url: str, rows: int) -> Measured:
    """Every figure for one database."""
    engine = connect.open_catalog(url)
    migrate.upgrade(engine)
    measured: Measured = {}
    measured["enqueue new"] = rows / scan(engine, rows)
    _analyze(engine)
    measured["rescan unchanged"] = rows / scan(engine, rows)
    # A fifth of the rows each, so that the catalog is as large for the last as for the first.
    for claimers in (1, 2):
        rate, share = claim_and_settle(url, claimers, rows // 5)
        measured[f"claim+settle, {claimers} claimer{'s' * (claimers > 1)}"] = rate
        measured[f"  part of it claiming, {claimers}"] = share
    measured["rescan, 2/5 done"] = rows / scan(engine, rows)
    engine.dispose()
    return measured


def _analyze(engine: sa.Engine) -> None:
    """What autovacuum does by itself within a minute on PostgreSQL; SQLite plans without it."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.text("VACUUM ANALYZE"))


@contextlib.contextmanager
def explained(engine: sa.Engine, rows_hint: str) -> Iterator[None]:
    """Print the plan of every statement on images that runs meanwhile, each once."""
    seen: set[str] = set()
    sqlite = engine.dialect.name == "sqlite"

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "images" not in statement or statement in seen or statement.startswith("EXPLAIN"):
            return
        seen.add(statement)
        cursor.execute(("EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN ") + statement, parameters)
        lines = [str(row[3] if sqlite else row[0])[:160] for row in cursor.fetchall()]
        print(f"\n-- {rows_hint}: {' '.join(statement.split())[:150]} ...", *lines, sep="\n   ")

    try:
        yield
    finally:
        sa.event.remove(engine, "before_cursor_execute", _explain)


def explain(url: str) -> None:
    """The plans of the hot statements, on the rows that `measure` left."""
    engine = connect.open_catalog(url)
    _analyze(engine)
    lease = begin(engine, "explain")
    held: list[int] = []

    def turn(name: str, work: Callable[[sa.Connection], Any]) -> Any:
        with explained(engine, name):
            started = time.perf_counter()
            result = connect.transact(engine, work)
            print(f"   {1000 * (time.perf_counter() - started):.1f} ms")
            return result

    claimed = turn("claim", lambda conn: claim.claim(conn, lease, CLAIM_BATCH, [ROOT]))
    held += [image.id for image in claimed]
    turn("claim, two roots", lambda conn: claim.claim(conn, lease, 16, [ROOT, "/data/other"]))
    turn("claim, nothing there", lambda conn: claim.claim(conn, lease, 16, ["/data/other"]))
    turn("release_unheld", lambda conn: claim.release_unheld(conn, lease, held))
    turn("release", lambda conn: claim.release(conn, lease, held[:16]))
    made = [Made(image, at, "x") for at, image in enumerate(claimed[16:])]
    shard = SealedShard(lease.token, lease.token, len(made), 1, "x", "none")
    turn("settle", lambda conn: settle.settle(conn, lease, Settlement(shard, made), IDENTITY, RetryPolicy()))
    turn("enqueue", lambda conn: enqueue.enqueue(conn, ROOT, found(0, SCAN_BATCH)))
    turn("known_files", lambda conn: enqueue.known_files(conn, "2026/00001", ROOT, 5000))
    turn(
        "known_between",
        lambda conn: enqueue.known_between(conn, ROOT, "2026/00001", None, 10_000, priority=PRIORITY_BACKLOG),
    )
    turn("end_lease", lambda conn: leases.end_lease(conn, lease, "explained", RetryPolicy()))
    for name in ("pending_roots", "next_due_seconds", "mend_far_future", "failures_by_kind"):
        turn(name, getattr(stats, name))
    turn("live_vectors", lambda conn: live.live_vectors(conn, 1000, 4096))
    turn("failed_after", lambda conn: retry.failed_after(conn, 1000, 2000))
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--database", action="append", required=True, help="address of an empty database; repeat it"
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument(
        "--explain", action="store_true", help="print the plans of the hot statements afterwards"
    )
    options = parser.parse_args()
    measured = [measure(url, options.rows) for url in options.database]
    names = [sa.make_url(url).get_backend_name() for url in options.database]
    print(f"{options.rows} rows".ljust(28), *(f"{name:>12}" for name in names), "   ratio to the first")
    for line in measured[0]:
        values = [one[line] for one in measured]
        ratios = " ".join(f"{value / values[0]:6.2f}" for value in values[1:])
        shown = [f"{value:12.2f}" if value < 1 else f"{value:12,.0f}" for value in values]
        print(line.ljust(28), *shown, "  ", ratios)
    if options.explain:
        for url in options.database:
            print(f"\n==== {sa.make_url(url).get_backend_name()}")
            explain(url)


if __name__ == "__main__":
    main()
