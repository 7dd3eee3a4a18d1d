"""Everything in which SQLite and PostgreSQL differ. No other module but dump.py asks which of the two it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import Grouping

from featd import clock
from featd.catalog.schema import Moment, images, in_state
from featd.errors import ConfigError
from featd.states import State

T = TypeVar("T")

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""The database names that featd accepts, and the driver for each."""

LOCK_KEY = 0x66656174
"""The key of the advisory lock that a migration takes on PostgreSQL ("feat" in ASCII)."""


_TIMELINE = "timeline"
"""Of a connection's `info`: "" for one to a replica, none where the server does not tell."""
_REPLICA = ""
_READ_TIMELINE = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN ''"
    " ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END"
)


def is_sqlite(conn: sa.Connection | sa.Engine) -> bool:
    return conn.dialect.name == "sqlite"


# Connections


def prepare_engine(engine: sa.Engine, lease_seconds: float, only_looks: bool = False) -> None:
    """Set up SQLite's transactions and durability, without which committed rows can be lost; on PostgreSQL, the
    client's limit for each answer. `only_looks`: see `connect.open_catalog`."""
    if not is_sqlite(engine):
        _bound(engine, answer_seconds(lease_seconds))
        return

    file = Path(str(engine.url.database))

    @sa.event.listens_for(engine, "do_connect")
    def _do_connect(_dialect: Any, record: Any, _arguments: Any, options: Any) -> Any:
        # SQLite would create an empty database where the catalog's disk is not mounted.
        if not file.exists():
            raise sqlite3.OperationalError("there is no such file; `featd init` makes a new catalog")
        record.info["unchanging"] = _is_unchanging(file, only_looks)
        if not record.info["unchanging"] and not only_looks:
            return None
        how = "immutable=1" if record.info["unchanging"] else "readonly_shm=1"
        return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&{how}", uri=True, **options)

    @sa.event.listens_for(engine, "checkout")
    def _checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["unchanging"] and not _is_unchanging(file, only_looks):
            raise sa.exc.DisconnectionError("somebody has begun to write into the catalog: connect anew")

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        # The transaction mode of Python's sqlite3 begins too late and loses updates, so `_begin` below sends BEGIN.
        connection.isolation_level = None
        for pragma in (
            "busy_timeout = 2000",
            "journal_mode = WAL",
            "synchronous = FULL",  # NORMAL loses committed rows in a power cut
            "foreign_keys = ON",
            "cache_size = -32768",  # of each connection, and a scan has two
        ):
            if not ((record.info["unchanging"] or only_looks) and pragma.startswith("journal_mode")):
                connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(conn: sa.Connection) -> None:
        write = conn.get_execution_options().get("write", False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _is_unchanging(file: Path, only_looks: bool) -> bool:
    """Whether this process may or will only read, and nobody has the catalog open: SQLite wants to make files beside it
    for those who come later, and must be told that nobody does."""
    beside = [file.with_name(f"{file.name}-{end}").exists() for end in ("wal", "shm")]
    return not all(beside) if only_looks else not beside[0] and not os.access(file.parent, os.W_OK)


def _bound(engine: sa.Engine, seconds: float) -> None:
    import psycopg  # here: who works on SQLite needs no psycopg

    from featd.catalog.bounded import BoundedConnection

    @sa.event.listens_for(engine, "do_connect")
    def _do_connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.limit_seconds = seconds
        return connection

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: BoundedConnection, record: Any) -> None:
        try:
            record.info[_TIMELINE] = connection.execute(_READ_TIMELINE).fetchone()[0]  # type: ignore[index]
        except psycopg.Error as error:
            # Services that are only like PostgreSQL lack the functions, or refuse them. Any other error may pass, and
            # this connection would take other leases for live than the next one does.
            if (error.sqlstate or "")[:2] not in ("0A", "42", "55"):
                connection.close()
                raise
        if record.info.get(_TIMELINE) == _REPLICA:
            # It can only read, and it must not write either once the replica has become the primary.
            connection.execute("SET default_transaction_read_only = on")
        connection.commit()

    @sa.event.listens_for(engine, "checkout")
    def _checkout(connection: BoundedConnection, record: Any, _proxy: Any) -> None:
        if record.info.get(_TIMELINE) == _REPLICA:
            (still,) = connection.execute("SELECT pg_is_in_recovery()").fetchone()  # type: ignore[misc]
            connection.rollback()
            if not still:
                raise sa.exc.DisconnectionError("the replica has become the primary")


def answer_seconds(lease_seconds: float) -> float:
    """The longest that one statement may take."""
    return max(10.0, lease_seconds / 3)


def lift_limits(conn: sa.Connection) -> None:
    """For statements that read or change every row, which may take long: no limits for the rest of this transaction,
    and none of the client's for the rest of its connection's life."""
    if not is_sqlite(conn):
        # LOCAL: behind a pooler the session is others' afterwards.
        conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
        conn.exec_driver_sql("SET LOCAL lock_timeout = 0")
        conn.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        driver: Any = conn.connection.driver_connection
        driver.limit_seconds = None


def create_database(engine: sa.Engine) -> None:
    """Create SQLite's file where there is none; only a migration may do that. OSError where it cannot be created."""
    if is_sqlite(engine):
        Path(str(engine.url.database)).touch(0o640)  # the names of people's pictures are not for everybody


def connect_args(url: sa.URL, lease_seconds: float) -> dict[str, Any]:
    """Driver arguments: on PostgreSQL no connection may hang for longer than a third of a lease."""
    if url.get_backend_name() == "sqlite":
        return {}
    limit_ms = int(lease_seconds * 1000 / 3)
    return {
        "connect_timeout": max(2, int(lease_seconds / 3)),
        "application_name": "featd",
        "tcp_user_timeout": limit_ms,
        "keepalives_idle": max(1, int(lease_seconds / 6)),
        "options": f"-c idle_in_transaction_session_timeout={limit_ms} -c lock_timeout={limit_ms}"
        f" -c statement_timeout={int(answer_seconds(lease_seconds) * 1000)}",
        # A generic plan casts array parameters once per row (measured: 2.3 times slower).
        "prepare_threshold": None,
    }


def is_transient(error: sa.exc.DBAPIError) -> bool:
    """Whether the transaction was rolled back because of a lock or a deadlock, so that a retry can succeed."""
    cause = error.orig
    code = getattr(cause, "sqlstate", None)
    if code is not None:
        return code in ("40001", "40P01", "55P03")
    return getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def is_refused(error: sa.exc.DBAPIError) -> bool:
    """Whether the database refuses a value: out of its range, of another encoding, or too large for an index."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, sa.exc.DataError) or state.startswith(("22", "54"))


def is_unreachable(error: sa.exc.DBAPIError) -> bool:
    """Whether the database is the problem (away, full, read-only, damaged) and not the statement."""
    name = getattr(error.orig, "sqlite_errorname", "")
    if name == "SQLITE_ERROR":  # a table that is missing or exists already: waiting does not help
        return False
    if isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    if state.startswith(("08", "53", "57", "58", "XX")) or state in ("25006", "42501"):
        return True
    return name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT"))


def full_disk(engine: sa.Engine) -> str:
    """What else is to be said of a SQLite catalog that is out of reach: it needs room for a file beside it even to be
    read, and says "disk I/O error". Empty where that is not it."""
    folder = Path(str(engine.url.database)).parent
    with contextlib.suppress(OSError):
        if is_sqlite(engine) and os.statvfs(folder).f_bavail == 0:
            return f": the disk of {folder} is full: make room there"
    return ""


def is_foreign_schema(error: sa.exc.DBAPIError) -> bool:
    """Whether a table or column is not as this featd's schema has it."""
    state = getattr(error.orig, "sqlstate", None)
    return state in ("42P01", "42P07", "42703", "42701") or (
        getattr(error.orig, "sqlite_errorname", "") == "SQLITE_ERROR"
    )


def check_encoding(conn: sa.Connection) -> None:
    """ConfigError where the database cannot hold every path."""
    encoding = "UTF8" if is_sqlite(conn) else conn.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise ConfigError(
            f"catalog.url: the database has the encoding {encoding}, and featd needs UTF8: create another with"
            " `createdb --encoding=UTF8 --template=template0 NAME`"
        )


# What `featd doctor` asks


@dataclass(frozen=True, slots=True)
class Server:
    """A database, as far as it is not featd's own. `settings`: those that the promise rests on. `free_connections`:
    those that only featd may take, or None where their number has no limit."""

    version: str
    settings: dict[str, str]
    may_write: bool
    free_connections: int | None


_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit", "autovacuum")


def look_at_server(conn: sa.Connection) -> Server:
    """How the database is set up. `may_write`: whether this user may change featd's tables, if they are there."""
    if is_sqlite(conn):
        file = Path(str(conn.engine.url.database))
        with file.open("rb") as opened:
            is_wal = opened.read(20)[18:20] == b"\2\2"
        may = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
        return Server(sqlite3.sqlite_version, {"journal_mode": "wal" if is_wal else "delete"}, may, None)
    shown = {name: str(conn.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in _SETTINGS}
    version = str(conn.exec_driver_sql("SHOW server_version").scalar_one()).partition(" ")[0]
    may_write, free = conn.exec_driver_sql(
        "SELECT current_setting('transaction_read_only') = 'off'"
        " AND COALESCE(has_table_privilege(to_regclass('images'), 'UPDATE'), true),"
        " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - (SELECT count(*) FROM pg_stat_activity"
        " WHERE usesysid IS NOT NULL AND application_name IS DISTINCT FROM 'featd')"
    ).one()
    return Server(version, shown, bool(may_write), int(free))


# Time


# On SQLite the time is a parameter, read whenever the statement is executed: so a statement can be built once.
_NOW: sa.BindParameter[Any] = sa.bindparam("catalog_now", type_=Moment, callable_=lambda: clock.utcnow())
_LEASE_NOW: sa.BindParameter[float] = sa.bindparam(
    "catalog_lease_now", type_=sa.Double, callable_=lambda: clock.boottime()
)
_BOOT: sa.BindParameter[str] = sa.bindparam("catalog_boot", type_=sa.Text, callable_=lambda: clock.boot_id())


def now(conn: sa.Connection) -> sa.ColumnElement[Any]:
    """The time at which the statement is executed, by the catalog's clock."""
    return _NOW if is_sqlite(conn) else sa.func.clock_timestamp(type_=Moment)


def now_once(conn: sa.Connection) -> sa.ColumnElement[Any]:
    """Now, read once per statement: PostgreSQL cannot use an index with a clock that moves while it scans."""
    return _NOW if is_sqlite(conn) else sa.select(now(conn)).scalar_subquery()


def later_once(conn: sa.Connection, seconds: float) -> sa.ColumnElement[Any]:
    """`seconds` from now, read once per statement."""
    moment = later(conn, seconds)
    return moment if is_sqlite(conn) else sa.select(moment).scalar_subquery()


def later(conn: sa.Connection, seconds: float) -> sa.ColumnElement[Any]:
    """`seconds` from now, by the catalog's clock."""
    if is_sqlite(conn):
        return sa.literal(clock.utcnow() + timedelta(seconds=seconds), Moment)
    return sa.type_coerce(
        sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds), Moment
    )


def lease_now(conn: sa.Connection) -> sa.ColumnElement[float]:
    """Now on the clock of leases, in seconds. Setting the wall clock does not expire a lease."""
    if is_sqlite(conn):
        return _LEASE_NOW
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


def boot_id(conn: sa.Connection) -> str | None:
    """What a live lease must carry: the boot id of this host; on PostgreSQL, the server's timeline, which a replica
    changes when it becomes the primary. It may lack the last transactions, and give their ids to other images: what a
    worker claimed on the former primary must not be settled there. None where the server does not tell."""
    return clock.boot_id() if is_sqlite(conn) else conn.connection.info.get(_TIMELINE) or None


def this_boot(conn: sa.Connection) -> sa.ColumnElement[str] | None:
    """The same for a statement that is built once."""
    if is_sqlite(conn):
        return _BOOT
    timeline = boot_id(conn)
    return None if timeline is None else sa.literal(timeline, sa.Text)


# Statements


def once(build: Callable[[sa.Connection], T]) -> Callable[[sa.Connection], T]:
    """For a function that builds a statement: it is called once for each kind of database and timeline, and not each
    time that the statement is executed. What differs from time to time are parameters. SQLAlchemy takes 0.1 to 0.5 ms
    to build one."""
    built: dict[tuple[str, str | None], T] = {}

    @wraps(build)
    def statement(conn: sa.Connection) -> T:
        kind = conn.dialect.name, conn.connection.info.get(_TIMELINE)
        if kind not in built:
            built[kind] = build(conn)
        return built[kind]

    return statement


def insert_if_new(conn: sa.Connection, table: sa.Table, keys: Sequence[str]) -> Any:
    """An INSERT that skips rows that exist already."""
    dialect: Any = sqlite if is_sqlite(conn) else postgresql
    return dialect.insert(table).on_conflict_do_nothing(index_elements=list(keys))


@contextlib.contextmanager
def without_checks(conn: sa.Connection) -> Iterator[None]:
    """For an INSERT that writes only what the CHECK constraints allow: SQLite makes a table of each list of allowed
    values, for each row, which takes as long as the INSERT itself."""
    if not is_sqlite(conn):
        yield
        return
    conn.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
    try:
        yield
    finally:
        if not conn.invalidated:
            conn.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")


def upsert(conn: sa.Connection, table: sa.Table, keys: Sequence[str], values: dict[str, Any]) -> Any:
    """INSERT `values`, or set them in the row of the same keys."""
    dialect: Any = sqlite if is_sqlite(conn) else postgresql
    statement = dialect.insert(table).values(**values)
    changed = {name: statement.excluded[name] for name in values if name not in keys}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)


def add_up(conn: sa.Connection, table: sa.Table, key: str, number: str, rows: sa.Select[Any]) -> sa.Insert:
    """INSERT the (key, number) that `rows` selects, or add the number to that of the row with the same key."""
    dialect: Any = sqlite if is_sqlite(conn) else postgresql
    statement = dialect.insert(table).from_select([key, number], rows)
    total = table.c[number] + statement.excluded[number]
    return statement.on_conflict_do_update(index_elements=[key], set_={number: total})  # type: ignore[no-any-return]


def slot(conn: sa.Connection, slots: int) -> sa.ColumnElement[str] | None:
    """The number, below `slots`, of this connection's slot among those that write at once; None on SQLite, where only
    one writes at a time."""
    return None if is_sqlite(conn) else sa.cast(sa.func.pg_backend_pid() % slots, sa.Text)


def rows_of(
    conn: sa.Connection,
    name: str,
    columns: dict[str, sa.types.TypeEngine[Any]],
    rows: Iterable[Sequence[Any]],
) -> sa.FromClause:
    """A derived table of `rows`, sent as one JSON document: one statement for any number of rows."""
    document = sa.bindparam(f"{name}_rows", as_document(rows), sa.Text, unique=True)
    return rows_in(conn, name, columns, document)


def as_document(rows: Iterable[Sequence[Any]]) -> str:
    """`rows` as `rows_in` wants them."""
    return json.dumps(list(rows), ensure_ascii=False)


def rows_in(
    conn: sa.Connection,
    name: str,
    columns: dict[str, sa.types.TypeEngine[Any]],
    document: sa.BindParameter[str],
) -> sa.FromClause:
    """The same for a statement that is built once: the rows are in the parameter `document`."""
    if is_sqlite(conn):
        each = sa.func.json_each(document).table_valued("value", name=f"{name}_each")
        picked = [
            sa.type_coerce(sa.func.json_extract(each.c.value, f"$[{at}]"), kind).label(column)
            for at, (column, kind) in enumerate(columns.items())
        ]
    else:
        each = sa.func.jsonb_array_elements(sa.cast(document, postgresql.JSONB)).table_valued(
            "value", name=f"{name}_each"
        )
        value = sa.type_coerce(each.c.value, postgresql.JSONB)
        picked = [
            sa.cast(value[at].astext, kind).label(column) for at, (column, kind) in enumerate(columns.items())
        ]
    # MATERIALIZED: inlined, SQLite may parse the document again for every row of the other table.
    return sa.select(*picked).cte(name).prefix_with("MATERIALIZED")


def has_id(conn: sa.Connection, ids: Sequence[int]) -> sa.ColumnElement[bool]:
    """`images.id` is one of `ids` (any number of them)."""
    return _is_among(conn, sa.bindparam("ids", as_ids(conn, ids), _type_of_ids(conn), unique=True))


def has_given_id(conn: sa.Connection) -> sa.ColumnElement[bool]:
    """The same for a statement that is built once: the ids are in its parameter `given_ids`, by `as_ids`."""
    return _is_among(conn, sa.bindparam("given_ids", type_=_type_of_ids(conn)))


def as_ids(conn: sa.Connection, ids: Sequence[int]) -> Any:
    return json.dumps(list(ids)) if is_sqlite(conn) else list(ids)


def _type_of_ids(conn: sa.Connection) -> sa.types.TypeEngine[Any]:
    return sa.Text() if is_sqlite(conn) else postgresql.ARRAY(sa.BigInteger)


def _is_among(conn: sa.Connection, ids: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    if is_sqlite(conn):
        return images.c.id.in_(sa.select(sa.func.json_each(ids).table_valued("value").c.value))
    return images.c.id == sa.any_(ids)


def overwrite_deleted(conn: sa.Connection) -> None:
    """What this connection deletes is overwritten in SQLite's file from now on, and not only marked as free."""
    if is_sqlite(conn):
        conn.exec_driver_sql("PRAGMA secure_delete = ON")


def lock_rows(conn: sa.Connection, statement: sa.Select[Any]) -> sa.Select[Any]:
    """Lock what `statement` selects until the transaction ends. SQLite's writer holds everything already."""
    if is_sqlite(conn):
        return statement
    return statement.with_for_update()


def lock_images(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> None:
    """Lock images in order of id, before an UPDATE that would take them in any order."""
    if not is_sqlite(conn):
        conn.execute(sa.select(images.c.id).where(*where).order_by(images.c.id).with_for_update())


def claim_first(
    conn: sa.Connection,
    queue: sa.Select[Any],
    limit: sa.ColumnElement[int],
    values: dict[str, Any],
    returning: Sequence[Any],
) -> sa.sql.dml.ReturningUpdate[Any]:
    """An UPDATE of the first `limit` images of a queue, skipping those that another claim has locked. `queue` selects
    id and not_before of pending rows and orders by them."""
    update = sa.update(images).values(**values).returning(*returning)
    first = queue.with_only_columns(images.c.id).limit(limit)
    if is_sqlite(conn):
        return update.where(images.c.id.in_(first))
    locked = first.with_for_update(skip_locked=True)
    return update.where(images.c.id == sa.any_(sa.func.array(locked.scalar_subquery())))


def claim_first_of_all(
    conn: sa.Connection,
    queues: Sequence[sa.Select[Any]],
    limit: int,
    values: dict[str, Any],
    returning: Sequence[Any],
) -> list[Any]:
    """The same with the first `limit` images of all `queues` together: executes it."""
    update = sa.update(images).values(**values).returning(*returning)
    if is_sqlite(conn):
        first = _first(queues, limit)
        return list(conn.execute(update.where(images.c.id.in_(sa.select(first.c.id)))).all())
    # PostgreSQL does not allow FOR UPDATE over a UNION: find the first rows, lock those that are free, and continue
    # behind them to make up for those that others had locked.
    claimed: list[Any] = []
    behind: list[sa.Select[Any]] = list(queues)
    while (wanted := limit - len(claimed)) > 0:
        first = _first(behind, wanted)
        seen = conn.execute(sa.select(first.c.id, first.c.not_before)).all()
        if not seen:
            break
        ids = [row.id for row in seen]
        free = sa.select(images.c.id).where(
            has_id(conn, ids), in_state(State.PENDING), images.c.not_before <= now_once(conn)
        )
        locked = free.order_by(images.c.id).with_for_update(skip_locked=True)
        claimed += conn.execute(update.where(images.c.id == sa.any_(sa.func.array(locked.scalar_subquery()))))
        if len(seen) < wanted:
            break
        place = sa.tuple_(sa.literal(seen[-1].not_before, Moment), sa.literal(seen[-1].id, sa.BigInteger))
        behind = [queue.where(sa.tuple_(images.c.not_before, images.c.id) > place) for queue in queues]
    return claimed


def _first(queues: Sequence[sa.Select[Any]], limit: int) -> sa.FromClause:
    """The first `limit` rows of all `queues`, by not_before and id. No queue is read further than `limit`."""
    parts = [queue.limit(limit).subquery() for queue in queues]
    union = sa.union_all(*(sa.select(part.c.id, part.c.not_before) for part in parts)).subquery()
    merged = parts[0] if len(parts) == 1 else union
    return (
        sa.select(merged.c.id, merged.c.not_before)
        .order_by(merged.c.not_before, merged.c.id)
        .limit(limit)
        .subquery()
    )


def update_each(
    conn: sa.Connection,
    where: sa.ColumnElement[bool],
    per_row: Sequence[str],
    rows: Sequence[tuple[int, *tuple[Any, ...]]],
    values: dict[str, Any],
) -> int:
    """UPDATE images: `values` in every row, and per row the columns `per_row`; `rows` are (id, *those columns).

    Returns how many were updated. One statement for any number of rows.
    """
    return write_each(conn, updating_each(conn, where, per_row, values), rows) if rows else 0


def updating_each(
    conn: sa.Connection, where: sa.ColumnElement[bool], per_row: Sequence[str], values: dict[str, Any]
) -> sa.Update:
    """The statement of `update_each`, for `write_each`."""
    if is_sqlite(conn):
        document: sa.BindParameter[str] = sa.bindparam("each_rows", type_=sa.Text)
        given = rows_in(conn, "given", {name: images.c[name].type for name in ("id", *per_row)}, document)
        own: dict[str, Any] = {column: given.c[column] for column in per_row}
        statement = sa.update(images).where(images.c.id == given.c.id, where)
    else:
        # Measured: UPDATE ... FROM unnest() flips to a bad plan on small tables; a binary search in a sorted
        # array parameter does not.
        ids: sa.BindParameter[Any] = sa.bindparam("each_0", type_=postgresql.ARRAY(sa.BigInteger))
        at = sa.func.width_bucket(images.c.id, ids)
        own = {}
        for index, column in enumerate(per_row, start=1):
            array = postgresql.ARRAY(images.c[column].type)
            listed: sa.BindParameter[Any] = sa.bindparam(f"each_{index}", type_=array)
            own[column] = sa.type_coerce(Grouping(listed), array)[at]
        statement = sa.update(images).where(images.c.id == sa.any_(ids), where)
    return statement.values(**own, **values)


def write_each(
    conn: sa.Connection, statement: sa.Update, rows: Sequence[tuple[int, *tuple[Any, ...]]], **parameters: Any
) -> int:
    """Execute what `updating_each` made, for these rows; how many it wrote."""
    rows = sorted(rows)
    if is_sqlite(conn):
        return changed(conn, statement, each_rows=as_document(rows), **parameters)
    columns = {f"each_{at}": list(column) for at, column in enumerate(zip(*rows, strict=True))}
    return changed(conn, statement, **columns, **parameters)


def tuples(result: sa.CursorResult[Any]) -> Sequence[tuple[Any, ...]]:
    """All rows as the driver gives them, where no type wants them changed: SQLAlchemy would make an object of
    each."""
    strategy: Any = (
        result.cursor_strategy
    )  # it closes the result, and makes SQLAlchemy's errors of the driver's
    rows: Sequence[tuple[Any, ...]] = strategy.fetchall(result, result.cursor)
    return rows


_CHANGES = sa.select(sa.func.changes())


def changed(conn: sa.Connection, statement: Any, **parameters: Any) -> int:
    """Execute one INSERT or UPDATE; how many rows it wrote."""
    options = {"preserve_rowcount": True}
    result: sa.CursorResult[Any] = conn.execute(statement, parameters or None, execution_options=options)
    if is_sqlite(conn):
        # Python's sqlite3 counts no rows of a statement that begins with WITH.
        return int(conn.execute(_CHANGES).scalar_one())
    return result.rowcount


def migration_lock(conn: sa.Connection) -> None:
    """Let only one migration run at a time. On SQLite the write transaction does that already."""
    if not is_sqlite(conn):
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
