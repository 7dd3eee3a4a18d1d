"""Upgrading a catalog to this featd's schema, and refusing to run on any other."""

from __future__ import annotations

import importlib.resources
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from featd.catalog import connect, corrections, dialects, instance, leases
from featd.crash_points import CrashPoint, crash_point
from featd.errors import CatalogUnavailableError, SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

_VERSION = sa.table("alembic_version", sa.column("version_num", sa.String))


def scripts() -> Path:
    """The folder of the migrations."""
    return Path(str(importlib.resources.files("featd_migrations")))


def alembic_config() -> Config:
    """Where the migrations are."""
    from alembic.config import Config  # a tenth of a second, and only an upgrade needs it

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    config.set_main_option("path_separator", "os")
    return config


def _revisions() -> list[str]:
    """In their order: the file of each begins with its name."""
    return sorted(file.name.partition("_")[0] for file in (scripts() / "versions").glob("[0-9]*_*.py"))


def head() -> str:
    """The schema revision that this featd works with."""
    return _revisions()[-1]


def current(conn: sa.Connection) -> str | None:
    """The catalog's revision; None where it is empty."""
    if not sa.inspect(conn).has_table(_VERSION.name):
        return None
    revision = conn.execute(sa.select(_VERSION.c.version_num)).scalar()
    return None if revision is None else str(revision)


def upgrade(engine: sa.Engine, *, create: bool = True) -> tuple[str | None, str]:
    """Upgrade the catalog to this featd's schema, in one transaction, under a lock; returns (before, after).
    SchemaError while a worker's lease is live.

    `create`: create SQLite's file where there is none. Otherwise that is an error, for its disk may not be mounted.
    """
    from alembic import command

    try:
        if create:
            dialects.create_database(engine)
            crash_point(CrashPoint.CATALOG_CREATED)
    except OSError as error:
        raise CatalogUnavailableError(
            f"catalog {connect.shown_url(engine)} cannot be created: {error.strerror}"
        ) from error
    _known_revision(engine)

    def work(conn: sa.Connection) -> str | None:
        dialects.lift_limits(conn)
        dialects.migration_lock(conn)
        before = current(conn)
        behind = before is not None and (before != head() or corrections.unnoted(conn))
        if behind and leases.any_live(conn):
            raise SchemaError(
                "workers of this catalog are running: stop featd on every host, then upgrade again (the lease of a"
                " worker that was killed lasts for the workers.lease_seconds of its host)"
            )
        config = alembic_config()
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
        instance.create_instance(conn)
        corrections.note_shards(conn)
        crash_point(CrashPoint.MIGRATING)
        return before

    before = connect.transact(engine, work)
    crash_point(CrashPoint.MIGRATED)
    return before, head()


def check_schema(engine: sa.Engine) -> None:
    """SchemaError unless the catalog has exactly this featd's schema."""
    revision = _known_revision(engine)
    if revision is None:
        raise SchemaError(
            f"catalog {connect.shown_url(engine)} is empty: create its tables with `featd init` or `featd db upgrade`"
        )
    if revision != head():
        raise SchemaError(
            f"catalog {connect.shown_url(engine)} has schema {revision}, this featd needs {head()}:"
            " run `featd db upgrade`"
        )


def is_known(revision: str) -> bool:
    """Whether this featd has the migration that made `revision`."""
    return revision in _revisions()


def _known_revision(engine: sa.Engine) -> str | None:
    """The catalog's revision; None where it is empty. SchemaError where this featd does not know it."""
    with connect.reading(engine) as conn:
        dialects.check_encoding(conn)
        revision = current(conn)
    if revision is not None and not is_known(revision):
        raise SchemaError(
            f"catalog {connect.shown_url(engine)} has schema {revision}, which is newer than this featd knows"
            f" ({head()}): install a newer featd"
        )
    return revision
