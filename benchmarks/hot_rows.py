"""Many workers on one PostgreSQL: what the counters cost, which all of them change.

    python benchmarks/hot_rows.py [--workers 16] [--batch 64] [--seconds 3] [--pairs 5] [--commit-ms 0] [--commit-ms 10]

Processes claim and settle for some seconds, each with a lease and a connection of its own, as featd's workers do:
with the counters as they are; without counters; and with every counter in one row. Told are the rates, and which share
of the connections at work waits for a lock, which a busy machine changes less. Each run has a new copy of the same
database. `--commit-ms`: how long a COMMIT takes at least, by PostgreSQL's commit_delay with commit_siblings = 0. No
vectors are made or written.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from queue import SimpleQueue
from typing import Any

import sqlalchemy as sa
from measuring import compared, parser, report, server_seconds, tell

from catalog import IDENTITY, ROOT, begin, scan, work
from featd.catalog import claim, connect, counters, dialects, migrate, settle
from featd.catalog.settle import Made, Settlement
from featd.states import RetryPolicy, SealedShard
from postgres import PostgreSQL

WAYS = ("slots", "none", "one row")


def as_told(way: str) -> None:
    """Change this process's counters."""
    if way == "none":
        counters.apply = lambda _conn, _changes: None
    elif way == "one row":
        counters.SLOTS = 1
        counters._add = dialects.once(counters._add.__wrapped__)  # type: ignore[attr-defined]  # noqa: SLF001


def worker(url: str, way: str, batch: int, ready: Any, until: Any, done: Any) -> None:
    as_told(way)
    engine = connect.open_catalog(url)
    lease = begin(engine, "bench")
    rows = turns = 0
    while turns == 0 or time.monotonic() < until.value:
        claimed = connect.transact(engine, claim.claim, lease, batch, [ROOT])
        if not claimed:
            raise SystemExit("no rows are left: give more --rows")
        name = f"{lease.token}-{turns}"
        shard = SealedShard(name, f"shards/{name}", len(claimed), 4096 * len(claimed), "xxh3_128:0", "none")
        made = [Made(image, at, f"xxh3_128:{image.id:032x}") for at, image in enumerate(claimed)]
        connect.transact(engine, settle.settle, lease, Settlement(shard, made), IDENTITY, RetryPolicy())
        rows += len(claimed)
        turns += 1
        if turns == 1:
            ready.wait()  # SQLAlchemy has compiled its statements
            rows = 0
    done.put((rows, turns - 1))
    engine.dispose()


LOOK = """SELECT count(*) FILTER (WHERE wait_event_type = 'Lock'), count(*) FROM pg_stat_activity
    WHERE datname = 'run' AND state = 'active' AND pid <> pg_backend_pid()"""


def waiting(server: PostgreSQL, done: Any, workers: int, seconds: float) -> float:
    """The share of working connections that wait for a lock, until all workers are done."""
    engine = connect.open_catalog(server.url("run"))
    waits = working = 0
    deadline = time.monotonic() + seconds + 60
    while done.qsize() < workers and time.monotonic() < deadline:
        with connect.reading(engine) as conn:
            seen = conn.exec_driver_sql(LOOK).one()
        waits, working = waits + seen[0], working + seen[1]
        time.sleep(0.02)
    engine.dispose()
    return waits / max(working, 1)


def run(server: PostgreSQL, way: str, options: Any) -> tuple[float, float, float, float]:
    """Rows and transactions a second of all workers; microseconds of the server's processors for a row; the share of
    connections that wait for a lock."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(options.workers + 1), context.Queue()
    until = context.Value("d", float("inf"))
    processes = [
        context.Process(target=worker, args=(server.url("run"), way, options.batch, ready, until, done))
        for _ in range(options.workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    took_before = server_seconds(server)
    began = time.monotonic()
    until.value = began + options.seconds
    waits = waiting(server, done, options.workers, options.seconds)
    found = [done.get(timeout=60 + options.seconds) for _ in processes]
    seconds = time.monotonic() - began
    took = server_seconds(server) - took_before
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows, turns = (sum(column) for column in zip(*found, strict=True))
    return rows / seconds, 2 * turns / seconds, took / rows * 1e6, waits


def measure(server: PostgreSQL, template: str, commit_ms: int, options: Any) -> dict[str, Any]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    waited: dict[str, list[float]] = {way: [] for way in WAYS}
    transactions: list[float] = []
    microseconds: list[float] = []
    deadlocks = 0
    for at in range(options.pairs):
        for way in WAYS:
            server.copy(template, "run")
            engine = connect.open_catalog(server.url("run"))
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.exec_driver_sql(f"ALTER DATABASE run SET commit_delay = {commit_ms * 1000}")
                conn.exec_driver_sql("ALTER DATABASE run SET commit_siblings = 0")
            engine.dispose()
            rate, a_second, of_server, waits = run(server, way, options)
            rates[way].append(rate)
            waited[way].append(waits)
            if way == "slots":
                transactions.append(a_second)
                microseconds.append(of_server)
            with connect.reading(engine) as conn:
                look = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = 'run'")
                deadlocks += conn.execute(look).scalar_one()
            engine.dispose()
        told = ", ".join(f"{way} {rates[way][-1]:,.0f} rows/s" for way in WAYS)
        tell(f"COMMIT of {commit_ms} ms, {at + 1}: {told}")
    return compared(
        rates["slots"],
        rates["none"],
        0.85,
        what="workers with counters against the same without, rows/s",
        commit_ms=commit_ms,
        one_row=round(statistics.median(rates["one row"]), 1),
        transactions_a_second=round(statistics.median(transactions), 1),
        server_microseconds_a_row=round(statistics.median(microseconds), 1),
        waiting_for_locks={way: round(statistics.median(waited[way]), 3) for way in WAYS},
        deadlocks=deadlocks,
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--workers", type=int, default=16, help="default: 16")
    made.add_argument("--batch", type=int, default=64, help="rows of a claim; default: 64")
    made.add_argument("--seconds", type=float, default=3.0, help="of each run; default: 3")
    made.add_argument("--rows", type=int, default=100_000, help="in the database; default: 100000")
    made.add_argument("--commit-ms", type=int, action="append", help="default: 0 and 10")
    options = made.parse_args()
    server = PostgreSQL(durable=True)
    try:
        template = server.create()
        engine = connect.open_catalog(server.url(template))
        migrate.upgrade(engine)
        scan(engine, options.rows)
        engine.dispose()
        # The first settle sets the fingerprint, for which all others would wait.
        work(server.url(template), "first", 1, SimpleQueue())
        results = [measure(server, template, ms, options) for ms in options.commit_ms or (0, 10)]
    finally:
        server.close()
    report("hot_rows", results, workers=options.workers, batch=options.batch)


if __name__ == "__main__":
    main()
