"""What a check of the whole catalog asks. Reads only; what is wrong is put right in `repair`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, values
from featd.catalog.schema import images, shards
from featd.states import State

IMAGES = 100_000
"""Ids of images that are looked through at a time."""
REPAIRS = "repairs"
"""The setting that counts the repairs of counters."""


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard as the catalog records it. `live_rows` is the catalog's own count."""

    id: int
    name: str
    path: str
    rows: int
    live_rows: int
    bytes: int
    checksum: str
    retired: bool


class NamingRow(NamedTuple):
    """Where an image's row says that its vector is."""

    id: int
    shard_id: int | None
    shard_row: int | None
    content: str | None


@dataclass(slots=True)
class Recount:
    """What the catalog's counts lack of what there is: images by state, and images that name a shard. Who works with
    the catalog meanwhile adds to the counts, and so leaves these differences as they are."""

    states: dict[State, int] = field(default_factory=dict)
    live_rows: dict[int, int] = field(default_factory=dict)
    counted: dict[State, int] = field(default_factory=dict)
    """Images by state."""
    repairs: int = 0
    """How often counters had been repaired: another repair makes these differences void."""

    def __bool__(self) -> bool:
        return bool(self.states or self.live_rows)


def snapshot(catalog: sa.Engine) -> sa.Engine:
    """The same catalog for readers who see one moment in all statements of a transaction."""
    return (
        catalog
        if dialects.is_sqlite(catalog)
        else catalog.execution_options(isolation_level="REPEATABLE READ")
    )


def recount(conn: sa.Connection) -> Recount:
    """Count everything, in one snapshot. Reads every row: some ten seconds for ten million."""
    dialects.lift_limits(conn)
    found = Recount(repairs=repairs(conn))
    by_state = sa.select(images.c.state, sa.func.count()).group_by(images.c.state)
    found.counted = dict.fromkeys(State, 0) | {State(row[0]): row[1] for row in conn.execute(by_state)}
    recorded = counters.counts(conn)
    found.states = {state: n - recorded[state] for state, n in found.counted.items() if n != recorded[state]}
    naming = sa.select(images.c.shard_id, sa.func.count().label("images")).where(
        images.c.shard_id.is_not(None)
    )
    naming_each = naming.group_by(images.c.shard_id).subquery()
    lacking = sa.func.coalesce(naming_each.c.images, 0) - shards.c.live_rows
    joined = shards.outerjoin(naming_each, naming_each.c.shard_id == shards.c.id)
    statement = sa.select(shards.c.id, lacking).select_from(joined).where(lacking != 0)
    found.live_rows = {shard_id: int(lacks) for shard_id, lacks in conn.execute(statement)}
    return found


def repairs(conn: sa.Connection) -> int:
    """How often counters were repaired."""
    return int(values.get_value(conn, REPAIRS) or 0)


def shards_after(conn: sa.Connection, after: int, limit: int) -> list[ShardRow]:
    """The next shards in order of id, beginning behind `after`."""
    return _shards(conn, shards.c.id > after, limit)


def shards_of(conn: sa.Connection, ids: Sequence[int]) -> dict[int, ShardRow]:
    """Those shards, by id."""
    return {row.id: row for row in _shards(conn, shards.c.id.in_(ids), len(ids))}


def _shards(conn: sa.Connection, which: sa.ColumnElement[bool], limit: int) -> list[ShardRow]:
    columns = (
        *shards.c["id", "name", "path", "rows", "live_rows", "bytes", "checksum"],
        shards.c.retired.is_not(None),
    )
    statement = sa.select(*columns).where(which).order_by(shards.c.id).limit(limit)
    return [ShardRow(*row) for row in conn.execute(statement)]


def checksums(conn: sa.Connection, paths: Sequence[str]) -> dict[str, str]:
    """Path -> recorded checksum, of those of the shards that images name."""
    given = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in paths])
    statement = sa.select(*shards.c["path", "checksum"]).join(given, given.c.path == shards.c.path)
    return {row[0]: row[1] for row in conn.execute(statement.where(shards.c.live_rows > 0))}


def totals(conn: sa.Connection) -> tuple[int, int]:
    """How many shards there are that are not retired, and their bytes."""
    count, size = sa.func.count(), sa.func.coalesce(sa.func.sum(shards.c.bytes), 0)
    row = conn.execute(sa.select(count, size).where(shards.c.retired.is_(None))).one()
    return int(row[0]), int(row[1])


_NAMING = images.c["id", "shard_id", "shard_row", "content"]


def naming(conn: sa.Connection, image_ids: Sequence[int]) -> set[NamingRow]:
    """Those of these images that name a shard."""
    which = (dialects.has_id(conn, image_ids), images.c.shard_id.is_not(None))
    # All at once: row by row takes twice as long.
    return set(map(NamingRow._make, conn.execute(sa.select(*_NAMING).where(*which)).all()))


def paths_of(conn: sa.Connection, image_ids: Sequence[int]) -> dict[int, str]:
    """Image id -> its root and path, for messages."""
    statement = sa.select(*images.c["id", "root", "path"]).where(dialects.has_id(conn, image_ids))
    return {row.id: f"{row.root}/{row.path}" for row in conn.execute(statement)}


def unfounded(conn: sa.Connection, first: int, last: int) -> list[NamingRow]:
    """The images with ids from `first` to `last` that are done without a vector of their version, or name a shard that
    is not there (any more), or a row beyond its end."""
    none = sa.or_(images.c.shard_id.is_(None), images.c.shard_row.is_(None), images.c.content.is_(None))
    other = images.c.shard_version.is_distinct_from(images.c.version)
    beyond = sa.or_(images.c.shard_row < 0, images.c.shard_row >= shards.c.rows, images.c.shard_row.is_(None))
    nowhere = sa.or_(shards.c.id.is_(None), shards.c.retired.is_not(None), beyond)
    wrong = sa.or_(
        (images.c.state == State.DONE) & sa.or_(none, other),
        images.c.shard_id.is_not(None) & nowhere,
    )
    joined = images.outerjoin(shards, shards.c.id == images.c.shard_id)
    statement = sa.select(*_NAMING).select_from(joined).where(images.c.id.between(first, last), wrong)
    return list(map(NamingRow._make, conn.execute(statement.order_by(images.c.id)).all()))


def names_after(conn: sa.Connection, after: int, limit: int) -> list[tuple[int, int | None]]:
    """The next images, in order of id, beginning behind `after`: (id, the shard that it names)."""
    statement = sa.select(images.c.id, images.c.shard_id).where(images.c.id > after).order_by(images.c.id)
    return [(row[0], row[1]) for row in conn.execute(statement.limit(limit))]


def walk_naming(
    catalog: sa.Engine, shard_ids: set[int], limit: int = 5000
) -> Iterator[list[tuple[int, int]]]:
    """(id, shard) of every image that names one of these shards. No index tells: reads every row."""
    for page in connect.walk(catalog, names_after, lambda row: row[0], 0, limit):
        if chosen := [(image, shard) for image, shard in page if shard is not None and shard in shard_ids]:
            yield chosen


@dataclass(frozen=True, slots=True)
class DoneFile:
    """The file that a done image's vector was made from."""

    id: int
    root: str
    path: str
    size: int
    mtime_ns: int


def done_after(conn: sa.Connection, after: int, limit: int) -> list[DoneFile]:
    """The next done images in order of id, beginning behind `after`."""
    dialects.lift_limits(conn)
    columns = images.c["id", "root", "path", "size", "mtime_ns"]
    statement = sa.select(*columns).where(images.c.id > after, images.c.state == State.DONE)
    return [DoneFile(*row) for row in conn.execute(statement.order_by(images.c.id).limit(limit))]
