"""Claim and settle against the raw driver doing the same SQL, on both databases.

    python benchmarks/claims.py [--database sqlite] [--rows 100000] [--turns 8] [--pairs 9]

Two equal catalogs. On the first, featd claims and settles 1,024 rows, eight times; every statement and its values are
noted. On the second, they are run again by sqlite3 or psycopg alone, with every row fetched. Both are timed in turn.
How many rows each statement changed is compared, so that both databases did the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from measuring import chosen, compared, databases, databases_option, parser, report, scratch, tell

from catalog import CLAIM_BATCH, IDENTITY, ROOT, begin, scan
from featd.catalog import claim, connect, migrate, settle
from featd.catalog.settle import Made, Settlement
from featd.states import Lease, RetryPolicy, SealedShard


@dataclass(slots=True)
class Noted:
    """A statement with its values, `COMMIT` among them; how many rows it returned or changed."""

    statement: str
    values: Any
    rows: int = -1
    many: bool = False


def noting(engine: sa.Engine, noted: list[Noted]) -> None:
    """Note all that the engine sends from now on."""

    @sa.event.listens_for(engine, "after_cursor_execute")
    def _statement(_conn: Any, cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        noted.append(Noted(statement, values, -1 if cursor.description or many else cursor.rowcount, many))

    @sa.event.listens_for(engine, "commit")
    def _commit(_conn: Any) -> None:
        noted.append(Noted("COMMIT", ()))


def work(engine: sa.Engine, lease: Lease, serial: int) -> int:
    """One claim and one settle, as a worker does them; returns how many rows."""
    claimed = connect.transact(engine, claim.claim, lease, CLAIM_BATCH, [ROOT])
    name = f"{lease.token}-{serial}"
    shard = SealedShard(name, f"shards/{name}", len(claimed), 4096 * len(claimed), "xxh3_128:0", "none")
    made = [Made(image, at, f"xxh3_128:{image.id:032x}") for at, image in enumerate(claimed)]
    connect.transact(engine, settle.settle, lease, Settlement(shard, made), IDENTITY, RetryPolicy())
    return len(claimed)


def replay(connection: Any, noted: list[Noted]) -> None:
    """The same by the driver alone."""
    cursor = connection.cursor()
    for one in noted:
        if one.many:
            cursor.executemany(one.statement, one.values)
        elif one.values:
            cursor.execute(one.statement, one.values)
        else:
            cursor.execute(one.statement)
        if cursor.description:
            cursor.fetchall()
        elif one.rows >= 0:
            assert cursor.rowcount == one.rows, one.statement


def raw(url: str, engine: sa.Engine) -> Any:
    """A connection of the driver, in no transaction: the statements begin their own."""
    if engine.dialect.name == "sqlite":
        pooled = engine.raw_connection()  # with featd's pragmas
        return pooled.driver_connection
    parsed = sa.make_url(url)
    return psycopg.connect(
        host=parsed.query["host"],
        port=parsed.port,
        dbname=parsed.database,
        user=parsed.username,
        autocommit=True,
    )


def measure(url: str, twin: str, options: Any) -> dict[str, Any]:
    engines = [connect.open_catalog(one) for one in (url, twin)]
    for engine in engines:
        migrate.upgrade(engine)
        scan(engine, options.rows)
    mine, other = engines
    lease = begin(mine, "bench")
    twins = begin(other, "bench")
    # The same in both, down to the lease's token.
    connect.transact(
        other, lambda conn: conn.execute(sa.text("UPDATE leases SET token = :t"), {"t": lease.token})
    )
    assert lease.id == twins.id
    driver = raw(twin, other)
    postgresql = mine.dialect.name == "postgresql"
    noted: list[Noted] = []
    noting(mine, noted)
    featd, alone = [], []
    serial = 0
    for at in range(options.pairs + 1):
        noted.clear()
        began = time.perf_counter()
        rows = 0
        for _ in range(options.turns):
            serial += 1
            rows += work(mine, lease, serial)
        took = time.perf_counter() - began
        statements = [
            Noted("BEGIN", ()) if postgresql and before.statement == "COMMIT" else None
            for before in [Noted("COMMIT", ()), *noted[:-1]]
        ]
        again = [one for pair in zip(statements, noted, strict=True) for one in pair if one is not None]
        began = time.perf_counter()
        replay(driver, again)
        its = time.perf_counter() - began
        if at:  # the first fills the caches of statements
            featd.append(rows / took)
            alone.append(rows / its)
            tell(f"{mine.dialect.name} {at}: featd {rows / took:,.0f} rows/s, the driver {rows / its:,.0f}")
    count = sa.text("SELECT count(*) FROM images WHERE state = 'done'")
    done = []
    for engine in engines:
        with connect.reading(engine) as conn:
            done.append(conn.execute(count).scalar_one())
    assert done[0] == done[1] == serial * CLAIM_BATCH, done
    return compared(
        featd,
        alone,
        0.7,
        what="claim and settle against the driver alone, rows/s",
        database=mine.dialect.name,
        statements_a_turn=len(noted) // options.turns,
    )


def main() -> None:
    made = parser(__doc__, pairs=9)
    databases_option(made)
    made.add_argument("--rows", type=int, default=100_000, help="in each catalog; default: 100000")
    made.add_argument("--turns", type=int, default=8, help="claims and settles of a pair; default: 8")
    options = made.parse_args()
    assert (options.pairs + 1) * options.turns * CLAIM_BATCH <= options.rows, "more --rows are needed"
    with scratch(options.folder) as folder, databases(folder) as servers:
        results = [
            measure(servers.new(kind), servers.new(kind), options) for kind in chosen(options.database)
        ]
    report("claims", results, rows=options.rows, batch=CLAIM_BATCH)


if __name__ == "__main__":
    main()
