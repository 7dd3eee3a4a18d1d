"""Reaching the catalog: durability, locks held by others, and what is said when it cannot be reached."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, enqueue, migrate, values
from featd.errors import EXIT_OUT_OF_REACH, CatalogUnavailableError, ConfigError
from featd.states import PRIORITY_BACKLOG
from postgres import PostgreSQL
from stalling import Stalling

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def opened() -> Iterator[Any]:
    """Open catalogs that are closed when the test ends."""
    engines: list[sa.Engine] = []

    def open_catalog(url: str, **named: Any) -> sa.Engine:
        engines.append(connect.open_catalog(url, **named))
        return engines[-1]

    yield open_catalog
    for engine in engines:
        engine.dispose()


def _out_of_reach(engine: sa.Engine) -> str:
    """What both ways in say, and with which exit code."""
    said = []
    for attempt in (
        lambda: connect.transact(engine, lambda conn: values.set_value(conn, "x", 1)),
        lambda: migrate.check_schema(engine),
    ):
        with pytest.raises(CatalogUnavailableError) as raised:
            attempt()
        assert raised.value.exit_code == EXIT_OUT_OF_REACH
        said.append(str(raised.value))
    return said[0]


@sqlite_only
def test_sqlite_keeps_what_it_said_it_kept(desk: Any) -> None:
    """synchronous=NORMAL lost 50 of 50 committed rows in a power cut."""
    with connect.reading(desk.engine) as conn:
        pragmas = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas["synchronous"] == 2
    assert pragmas["journal_mode"] == "wal"
    assert pragmas["foreign_keys"] == 1
    assert pragmas["busy_timeout"] > 0


@sqlite_only
def test_a_write_takes_the_writers_lock_at_its_begin(desk: Any) -> None:
    with desk.engine.connect().execution_options(write=True) as conn, conn.begin():
        other = sqlite3.connect(desk.engine.url.database, timeout=0, isolation_level=None)
        try:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.execute("SELECT * FROM settings").fetchall()
        finally:
            other.close()


@sqlite_only
def test_increments_of_many_threads_are_all_kept(desk: Any) -> None:
    """sqlite3's own transaction mode lost half of them."""

    def add(conn: sa.Connection) -> None:
        values.set_value(conn, "n", values.get_value(conn, "n") + 1)

    desk.do(values.set_value, "n", 0)
    threads = [threading.Thread(target=lambda: [desk.do(add) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert desk.do(values.get_value, "n") == 80


@sqlite_only
def test_a_writers_lock_held_by_another_is_waited_for(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """busy_timeout runs out, the transaction is tried again from its start, and is done once."""
    holder = sqlite3.connect(desk.engine.url.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            holder.execute("ROLLBACK")

    monkeypatch.setattr(connect.clock, "sleep", sleep)
    with desk.engine.connect() as conn:
        conn.exec_driver_sql("PRAGMA busy_timeout = 1")
    try:
        desk.find("x")
    finally:
        holder.close()
    assert len(slept) == 3
    assert len({*slept}) == 3, "with jitter"
    assert desk.row("x").version == 1


@sqlite_only
def test_a_lock_that_is_never_let_go_is_given_up(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = sqlite3.connect(desk.engine.url.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    seconds = iter(range(0, 10_000, 5))
    monkeypatch.setattr(connect.clock, "monotonic", lambda: float(next(seconds)))
    with desk.engine.connect() as conn:
        conn.exec_driver_sql("PRAGMA busy_timeout = 1")
    try:
        with pytest.raises(CatalogUnavailableError, match="locked"):
            desk.find("x")
    finally:
        holder.close()


def test_work_that_raises_leaves_nothing_behind(desk: Any) -> None:
    def work(conn: sa.Connection) -> None:
        values.set_value(conn, "half", True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        desk.do(work)
    assert desk.do(values.get_value, "half") is None


def test_a_mistake_of_ours_is_not_called_an_outage(desk: Any) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        desk.execute(sa.text("INSERT INTO settings (name, number) VALUES ('instance', 0)"))


@postgresql_only
def test_a_deadlock_is_tried_again(desk: Any) -> None:
    desk.find("x", "y")
    both = threading.Barrier(2)
    tries: list[int] = []

    def cross(first: int, second: int) -> None:
        waited: list[bool] = []

        def work(conn: sa.Connection) -> None:
            tries.append(first)
            lock = sa.text("SELECT id FROM images WHERE id = :id FOR UPDATE")
            conn.execute(lock, {"id": first})
            if not waited:
                waited.append(True)
                both.wait(30)
            conn.execute(lock, {"id": second})

        desk.do(work)

    threads = [threading.Thread(target=cross, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tries) == 3


@postgresql_only
def test_no_postgresql_session_outlives_a_third_of_a_lease(desk: Any, opened: Any) -> None:
    engine = opened(desk.engine.url.render_as_string(hide_password=False), lease_seconds=9.0)
    with connect.reading(engine) as conn:
        shown = [
            conn.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("idle_in_transaction_session_timeout", "lock_timeout", "application_name")
        ]
    assert shown == ["3s", "3s", "featd"]
    assert dialects.connect_args(engine.url, 9.0)["tcp_user_timeout"] == 3000


# Out of reach


def test_a_missing_folder(tmp_path: Path, opened: Any) -> None:
    assert "no such file" in _out_of_reach(opened(f"sqlite:///{tmp_path / 'missing' / 'featd.db'}"))
    with pytest.raises(CatalogUnavailableError, match="cannot be created"):
        migrate.upgrade(opened(f"sqlite:///{tmp_path / 'missing' / 'featd.db'}"))


def test_a_missing_file_is_not_made_by_looking(tmp_path: Path, opened: Any) -> None:
    """Its disk may not be mounted yet: systemd tries again."""
    assert "no such file" in _out_of_reach(opened(f"sqlite:///{tmp_path / 'featd.db'}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"this is not a database, by far" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database(tmp_path: Path, opened: Any, content: bytes) -> None:
    path = tmp_path / "featd.db"
    path.write_bytes(content)
    assert "featd.db" in _out_of_reach(opened(f"sqlite:///{path}"))
    assert path.read_bytes() == content


@sqlite_only
def test_a_damaged_database(desk: Any, tmp_path: Path, opened: Any) -> None:
    desk.find(*(f"{n}" for n in range(500)))
    with sqlite3.connect(desk.engine.url.database) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    copy = tmp_path / "damaged.db"
    whole = Path(desk.engine.url.database).read_bytes()
    copy.write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    with pytest.raises(CatalogUnavailableError, match=r"malformed|not a database"):
        connect.transact(opened(f"sqlite:///{copy}"), counters.counts)


@sqlite_only
def test_a_page_that_is_found_damaged_while_rows_are_fetched(desk: Any, tmp_path: Path, opened: Any) -> None:
    desk.find(*(f"{n:05}" for n in range(3000)))
    with sqlite3.connect(desk.engine.url.database) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    whole = Path(desk.engine.url.database).read_bytes()
    sound = len(whole) // 4096 * 3 // 4 * 4096  # the later rows are behind it
    copy = tmp_path / "damaged.db"
    copy.write_bytes(whole[:sound] + b"\xaa" * (len(whole) - sound))
    with (
        pytest.raises(CatalogUnavailableError, match="malformed"),
        connect.reading(opened(f"sqlite:///{copy}")) as conn,
    ):
        enqueue.known_between(conn, desk.root, "", None, 5000, priority=PRIORITY_BACKLOG)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's part, which only root can")
def test_a_file_that_may_not_be_written(opened: Any) -> None:
    folder = Path(tempfile.mkdtemp(prefix="featd-readonly-"))
    path = folder / "featd.db"
    try:
        engine = opened(f"sqlite:///{path}")
        migrate.upgrade(engine)
        engine.dispose()
        folder.chmod(0o755)
        path.chmod(0o444)
        os.seteuid(65534)
        try:
            with pytest.raises(CatalogUnavailableError, match=r"readonly|unable to open"):
                connect.transact(engine, lambda conn: values.set_value(conn, "x", 1))
        finally:
            os.seteuid(0)
            engine.dispose()
    finally:
        shutil.rmtree(folder)


@postgresql_only
def test_a_database_that_is_not_there(database_url: str, opened: Any) -> None:
    url = sa.make_url(database_url).set(database="no_such_database", password="canary")
    said = _out_of_reach(opened(url.render_as_string(hide_password=False)))
    assert "no_such_database" in said
    assert "canary" not in said


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:canary@127.0.0.1:1/db",
        "postgresql+psycopg://me:canary@/db?host=/nonexistent",
        "postgresql://me@127.0.0.1:1/db?password=canary",
    ],
)
def test_a_server_that_is_down(address: str, opened: Any) -> None:
    said = _out_of_reach(opened(address))
    assert "out of reach" in said
    assert "canary" not in said, "the password stays out of logs"
    assert "***" in said or "canary" not in address.partition("@")[0]


@postgresql_only
def test_a_connection_that_breaks_is_made_anew(desk: Any) -> None:
    """PostgreSQL was restarted between two transactions, or in the middle of one."""
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def broken(conn: sa.Connection) -> None:
        desk.find("x")
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with desk.engine.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        values.set_value(conn, "half", True)

    with pytest.raises(CatalogUnavailableError) as raised:
        desk.do(broken)
    assert not isinstance(raised.value, connect.CommitUnknownError)
    with desk.engine.connect() as conn:
        conn.exec_driver_sql(kill)
    assert desk.find("y").new == 1
    assert desk.do(values.get_value, "half") is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "mysql://x/y",
        "oracle:///x",
        "postgresql+asyncpg://x/y",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_what_is_no_address_of_a_catalog(address: str) -> None:
    with pytest.raises(ConfigError, match=r"catalog\.url"):
        connect.open_catalog(address)


# A peer that acknowledges and never answers


@pytest.fixture
def stalling(postgres: PostgreSQL) -> Iterator[Stalling]:
    folder = Path(tempfile.mkdtemp(prefix="featd-stall-"))  # a socket's path must be short
    made = Stalling(folder, postgres.home)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture
def behind(
    stalling: Stalling, postgres: PostgreSQL, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> sa.Engine:
    """A catalog behind the peer, whose answers are waited for half a second."""
    monkeypatch.setattr(dialects, "answer_seconds", lambda _: 0.5)
    url = postgres.url(postgres.create()).replace(str(postgres.home), str(stalling.folder))
    engine: sa.Engine = opened(url)
    migrate.upgrade(engine)
    engine.dispose()
    return engine


def count(conn: sa.Connection) -> int:
    return int(conn.scalar(sa.select(sa.literal(1))) or 0)


def test_no_statement_waits_for_ever_for_an_answer(stalling: Stalling, behind: sa.Engine) -> None:
    def stalls(conn: sa.Connection) -> None:
        stalling.stall()
        count(conn)

    with pytest.raises(CatalogUnavailableError, match=r"did not answer within 0\.5 s"):
        connect.transact(behind, stalls)
    # So does the look whether a pooled connection lives; then there is a new one.
    assert connect.transact(behind, count) == 1
    assert stalling.stall() == 1
    with contextlib.suppress(CatalogUnavailableError):
        connect.transact(behind, count)
    assert connect.transact(behind, count) == 1


def test_a_commit_without_an_answer_may_have_succeeded(stalling: Stalling, behind: sa.Engine) -> None:
    def work(conn: sa.Connection) -> None:
        values.set_value(conn, "x", 1)
        stalling.stall()

    with pytest.raises(connect.CommitUnknownError):
        connect.transact(behind, work)


def test_the_server_ends_a_statement_that_takes_too_long(
    postgres: PostgreSQL, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialects, "answer_seconds", lambda _: 0.2)
    engine = opened(postgres.url(postgres.create()))

    def sleeps(conn: sa.Connection) -> None:
        driver: Any = conn.connection.driver_connection
        driver.limit_seconds = None  # the client would wait
        conn.execute(sa.text("SELECT pg_sleep(60)"))

    with pytest.raises(CatalogUnavailableError, match="statement timeout"):
        connect.transact(engine, sleeps)

    def migrates(conn: sa.Connection) -> int:
        dialects.lift_limits(conn)
        conn.execute(sa.text("SELECT pg_sleep(0.5)"))
        return count(conn)

    assert connect.transact(engine, migrates) == 1


def test_a_database_that_cannot_hold_every_path_is_refused(postgres: PostgreSQL, opened: Any) -> None:
    name = f"latin_{uuid.uuid4().hex}"
    admin = sa.create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as conn:
        conn.exec_driver_sql(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    engine = opened(postgres.url(name))
    for attempt in (migrate.upgrade, migrate.check_schema):
        with pytest.raises(ConfigError, match="encoding LATIN1, and featd needs UTF8"):
            attempt(engine)
