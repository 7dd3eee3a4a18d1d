"""The tables in SQLAlchemy Core. The migrations create them; a test compares both."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from featd.states import Kind, State


class Moment(sa.types.TypeDecorator[datetime]):
    """An aware moment in UTC. SQLite keeps it as text that sorts by time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a moment needs its time zone: {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)

# SQLite gives rowids (and AUTOINCREMENT) to INTEGER PRIMARY KEY only; both are 64 bits wide.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Both databases compare paths by their bytes, so that their order is the same everywhere.
Path = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _one_of(column: str, values: type[State] | type[Kind]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


def _partial_index(name: str, where: str, *columns: sa.Column[Any]) -> None:
    """An index of the rows that `where` selects."""
    sa.Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


images = sa.Table(
    "images",
    metadata,
    sa.Column("id", BigId, sa.Identity(), primary_key=True),
    sa.Column("root", Path, nullable=False),
    sa.Column("path", Path, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("not_before", Moment, nullable=False),
    sa.Column("lease_id", sa.BigInteger),
    sa.Column("suspect", sa.Boolean, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("kills", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("error_kind", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("shard_id", sa.BigInteger),
    sa.Column("shard_row", sa.Integer),
    sa.Column("shard_version", sa.Integer),
    sa.Column("content", sa.Text),
    sa.Column("updated_at", Moment, nullable=False),
    # When the file's inode last changed, as the last scan saw it: no part of the version. NULL: not known yet.
    sa.Column("ctime_ns", sa.BigInteger),
    sa.UniqueConstraint("root", "path"),
    _one_of("state", State),
    _one_of("error_kind", Kind),
    sqlite_autoincrement=True,
)
# A claim reads this index from its start, for one root and priority at a time, and stops at the first row that is
# not due yet. The root comes first, so that the backlog of an offline root does not slow down the others.
_partial_index("ix_images_claim", "state = 'pending'", *images.c["root", "priority", "not_before", "id"])
_partial_index("ix_images_lease_id", "state = 'claimed'", images.c.lease_id)
_partial_index("ix_images_failed", "state = 'failed'", *images.c["id", "error_kind"])
_partial_index("ix_images_gone", "state = 'gone'", images.c.content)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("id", BigId, sa.Identity(), primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
    # The name of the worker's seat: that of its host, unless `featd run --seat` says otherwise.
    sa.Column("host", sa.Text, nullable=False),
    # Where it holds: until the next boot of the host or, on PostgreSQL, a failover of the server (dialects.boot_id).
    sa.Column("boot_id", sa.Text),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("started_at", Moment, nullable=False),
    # Seconds on the catalog's clock: PostgreSQL's clock_timestamp, or this boot's CLOCK_BOOTTIME on SQLite.
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("ended_at", Moment),
    sa.Column("end_reason", sa.Text),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("settles", sa.BigInteger, nullable=False),
    sa.Column("shares", sa.JSON, nullable=False),
    # The id in the folder of the seat and, behind a colon, the run of its supervisor. NULL: of a command.
    sa.Column("seat", sa.Text),
    sqlite_autoincrement=True,
)
_partial_index("ix_leases_open", "ended_at IS NULL", leases.c.host)

shards = sa.Table(
    "shards",
    metadata,
    sa.Column("id", BigId, sa.Identity(), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("live_rows", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("lease_id", sa.BigInteger, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    # When compaction moved its vectors into another shard.
    sa.Column("retired", Moment),
    sqlite_autoincrement=True,
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", BigId, sa.Identity(), primary_key=True),
    sa.Column("image_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("lease_id", sa.BigInteger),
    sa.Column("at", Moment, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    _one_of("kind", Kind),
    sqlite_autoincrement=True,
)

# The order of changes to live vectors: a row per transaction, numbered once it is committed.
feed = sa.Table(
    "feed",
    metadata,
    sa.Column("id", BigId, sa.Identity(), primary_key=True),
    sa.Column("seq", sa.BigInteger, unique=True),
    sa.Column("image_ids", sa.JSON, nullable=False),
    sa.Column("at", Moment, nullable=False),
    sqlite_autoincrement=True,
)
_partial_index("ix_feed_unnumbered", "seq IS NULL", feed.c.id)

# One row per name: the instance, the fingerprint and spec, golden vectors, scan times; and counters, in `number`.
settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text),
    sa.Column("number", sa.BigInteger, nullable=False),
)


# How much was done until each minute, for a week.
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("minute", BigId, primary_key=True, autoincrement=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("open", sa.BigInteger, nullable=False),
)


def in_state(state: State) -> sa.ColumnElement[bool]:
    """`images.state` is `state`, as a literal, so that the planner recognises the predicate of a partial index."""
    return images.c.state == sa.literal_column(f"'{state}'")
