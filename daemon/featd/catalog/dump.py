"""A copy of the whole catalog in one file, and a catalog from such a file, by the database's own means.

SQLite: its online backup. PostgreSQL: pg_dump and pg_restore. Beside dialects.py, this is the one module that knows
which of the two it is.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, instance
from featd.catalog.schema import metadata, shards
from featd.crash_points import CrashPoint, crash_point
from featd.errors import ConfigError, FeatdError, first_line
from featd.processes.signals import die_with_parent
from featd.shards.atomic import create_part, make_folder, part_of, publish_part, remove_part
from featd.states import State

TABLES = (*sorted(metadata.tables), "featd_backlog", "alembic_version")
"""What pg_dump copies, the view among it."""


@dataclass(frozen=True, slots=True)
class CopiedShard:
    """A shard that a copy of the catalog names. `path`: below the store. `live`: whether an image's row names it."""

    path: str
    checksum: str
    bytes: int
    live: bool


@dataclass(frozen=True, slots=True)
class Dumped:
    """What a copy of the catalog holds."""

    shards: Sequence[CopiedShard]
    done: int


def kind(catalog: sa.Engine) -> str:
    """`sqlite` or `postgresql`: a copy of the one is of no use to the other."""
    return catalog.dialect.name


def dump(catalog: sa.Engine, file: Path) -> Dumped:
    """Copy the catalog as it is at one moment into `file`, while others go on with it; what is in the copy.
    FeatdError; OSError."""
    if not dialects.is_sqlite(catalog):
        catalog = catalog.execution_options(isolation_level="REPEATABLE READ")
    with connect.reading(catalog) as conn:
        dialects.lift_limits(conn)
        dumped = Dumped(read_shards(conn), counters.counts(conn)[State.DONE])
        remove_part(file)
        fd = create_part(file)
        try:
            if dialects.is_sqlite(conn):
                _copy_sqlite(conn, part_of(file))
            else:
                snapshot = conn.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
                tables = [f"--table={name}" for name in TABLES]
                _run(catalog, "pg_dump", "--format=custom", f"--snapshot={snapshot}", *tables, stdout=fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    crash_point(CrashPoint.BACKUP_CATALOG_WRITTEN)
    publish_part(file)
    return dumped


def _copy_sqlite(conn: sa.Connection, part: Path) -> None:
    source: Any = conn.connection.driver_connection
    target = sqlite3.connect(part)
    try:
        target.execute("PRAGMA journal_mode = OFF")  # no second file: a copy that fails is thrown away
        source.backup(target)  # in the transaction of `conn`
    except sqlite3.Error as error:
        raise FeatdError(f"{part}: cannot copy the catalog: {error}") from error
    finally:
        target.close()


def is_empty(catalog: sa.Engine) -> bool:
    """Whether there is nothing that a restored catalog would replace. CatalogUnavailableError."""
    if dialects.is_sqlite(catalog):
        return not any(file.exists() for file in _sqlite_files(catalog))
    with connect.reading(catalog) as conn:
        return not sa.inspect(conn).get_table_names()


def load(catalog: sa.Engine, file: Path) -> None:
    """Make the catalog, which `is_empty`, from a copy: all of it or nothing. FeatdError; OSError."""
    if not dialects.is_sqlite(catalog):
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        _run(catalog, "pg_restore", *options, file=file)
        return
    target, *_ = _sqlite_files(catalog)
    remove_part(target)
    make_folder(target.parent)
    fd = create_part(target)
    with os.fdopen(fd, "wb") as out, file.open("rb") as copy:
        shutil.copyfileobj(copy, out, 1 << 20)
        out.flush()
        os.fsync(fd)
    publish_part(target)


def _sqlite_files(catalog: sa.Engine) -> list[Path]:
    """The catalog's file, and those that SQLite may keep beside it and would take for its own."""
    return [Path(f"{catalog.url.database}{end}") for end in ("", "-wal", "-journal")]


def read_shards(conn: sa.Connection) -> list[CopiedShard]:
    """The shards of a catalog, in order of path. Without the retired ones: no image names them, and what was forgotten
    may be in them."""
    columns = (*shards.c["path", "checksum", "bytes"], shards.c.live_rows > 0)
    found = [CopiedShard(*row) for row in conn.execute(sa.select(*columns).where(shards.c.retired.is_(None)))]
    return sorted(found, key=lambda shard: shard.path)


def still_named(conn: sa.Connection, paths: Sequence[str]) -> set[str]:
    """Those of the shards `paths` that images name now: compaction may have moved their rows meanwhile."""
    given = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in paths])
    statement = sa.select(shards.c.path).join(given, given.c.path == shards.c.path)
    return set(conn.scalars(statement.where(shards.c.live_rows > 0)))


def instance_of(catalog: sa.Engine) -> str | None:
    """The catalog's instance id; None where it has none."""
    with connect.reading(catalog) as conn:
        return instance.instance_id(conn) if sa.inspect(conn).has_table("settings") else None


def _run(
    catalog: sa.Engine, name: str, *options: str, file: Path | None = None, stdout: int | None = None
) -> None:
    """Run one of PostgreSQL's own programs on the catalog. The password is in its environment, where other users
    cannot read it."""
    from psycopg import conninfo, pq  # here: who works on SQLite needs no psycopg

    program = shutil.which(name)
    if program is None:
        raise FeatdError(
            f"{name} is not installed: install PostgreSQL's client programs (Debian: postgresql-client)"
        )
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    _, given = catalog.dialect.create_connect_args(catalog.url)
    address = {key: value for key, value in given.items() if key in known}
    environment = dict(os.environ)
    if "password" in address:
        environment["PGPASSWORD"] = str(address.pop("password"))
    if secrets := [key for key in address if "password" in key]:
        raise ConfigError(f"catalog.url: {name} cannot be given {secrets[0]} without showing it to everybody")
    parent = os.getpid()
    ran = subprocess.run(
        [
            program,
            "--no-password",
            f"--dbname={conninfo.make_conninfo(**address)}",
            *options,
            *([str(file)] if file else []),
        ],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        env=environment,
        preexec_fn=lambda: die_with_parent(parent),
        check=False,
    )
    if ran.returncode:
        raise FeatdError(f"{name} failed: {first_line(Exception(ran.stderr))}")
