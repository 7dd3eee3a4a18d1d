"""Forgetting images for good: the note that says which, and the transactions in which their rows go. Their vectors are
taken out of the shards in `janitor/forgetting.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import sqlalchemy as sa

from featd.catalog import counters, dialects, feed, leases, settle, stats, values
from featd.catalog.compact import OldShard
from featd.catalog.counters import StateChanges
from featd.catalog.schema import attempts, images, in_state, shards
from featd.catalog.schema import leases as lease_table
from featd.states import Lease, State

NOTE = "forget"
"""The setting: what is being forgotten, until no vector of it is left."""


class Target(NamedTuple):
    """A file or folder that is to be forgotten; the path is in catalog form, and that of the root itself is empty."""

    root: str
    path: str


@dataclass(frozen=True, slots=True)
class Note:
    """What is being forgotten. `contents`: the hashes of these files, which copies of a vector have under other names.
    `newest`: the newest image of the catalog; a later one at such a path is another file."""

    targets: tuple[Target, ...]
    contents: tuple[str, ...]
    newest: int


class KnownImage(NamedTuple):
    """A row of an image at or beneath a target."""

    id: int
    root: str
    path: str
    state: State
    content: str | None
    """Of its vector; None where it has none."""


class KnownShard(NamedTuple):
    """A shard of the catalog; the file of a retired one may be gone."""

    shard: OldShard
    retired: bool


def read(conn: sa.Connection) -> Note | None:
    """What is being forgotten; None where nothing is."""
    note = values.get_value(conn, NOTE)
    if note is None:
        return None
    targets = tuple(Target(*target) for target in note["targets"])
    return Note(targets, tuple(note["contents"]), int(note["newest"]))


def begin(conn: sa.Connection, targets: Sequence[Target], contents: Sequence[str]) -> Note:
    """Note that these are forgotten, and what an earlier command has not finished."""
    values.add_values(conn, {NOTE: None})
    values.lock(conn, NOTE)
    before = read(conn) or Note((), (), 0)
    newest = stats.last_image(conn)
    note = Note(
        tuple(sorted({*before.targets, *targets})), tuple(sorted({*before.contents, *contents})), newest
    )
    values.set_value(conn, NOTE, asdict(note))
    return note


def end(conn: sa.Connection, note: Note) -> bool:
    """Everything of `note` is forgotten. False where another command has added to it."""
    values.lock(conn, NOTE)
    if read(conn) != note:
        return False
    dialects.overwrite_deleted(conn)
    values.remove(conn, NOTE)
    return True


def images_of(conn: sa.Connection, after: str, target: Target, limit: int) -> list[KnownImage]:
    """The next images at or beneath `target`, in order of path, beginning behind the path `after`."""
    columns = images.c["id", "root", "path", "state", "content"]
    statement = sa.select(*columns).where(images.c.path > after, *_beneath(target))
    return [
        KnownImage(row.id, row.root, row.path, State(row.state), row.content)
        for row in conn.execute(statement.order_by(images.c.path).limit(limit))
    ]


def erase(conn: sa.Connection, target: Target, newest: int, limit: int) -> int:
    """Delete the rows of some of these images, up to the id `newest`, whatever their state; returns how many. Those
    that a live worker has in hand stay."""
    dialects.overwrite_deleted(conn)
    over = sa.select(lease_table.c.id).where(sa.not_(leases.is_live(conn)))
    free = (images.c.state != State.CLAIMED) | images.c.lease_id.in_(over)
    some = sa.select(images.c.id).where(*_beneath(target), images.c.id <= newest, free)
    ids = conn.scalars(some.order_by(images.c.path).limit(limit)).all()
    statement = sa.select(*images.c["id", "state", "shard_id"]).where(dialects.has_id(conn, ids), free)
    rows = conn.execute(dialects.lock_rows(conn, statement.order_by(images.c.id))).all()
    these = dialects.has_id(conn, [row.id for row in rows])
    conn.execute(sa.delete(attempts).where(attempts.c.image_id.in_(sa.select(images.c.id).where(these))))
    conn.execute(sa.delete(images).where(these))
    settle.leave_shards(conn, [row.shard_id for row in rows])
    feed.note(conn, [row.id for row in rows if row.state == State.DONE])
    changes = StateChanges()
    for row in rows:
        changes[State(row.state)] -= 1
    counters.apply(conn, changes)
    return len(rows)


def count_left(conn: sa.Connection, note: Note) -> int:
    """The rows that `erase` leaves: workers have them in hand."""
    counts = [
        sa.select(sa.func.count()).select_from(images).where(*_beneath(target), images.c.id <= note.newest)
        for target in note.targets
    ]
    return sum(int(conn.scalar(count) or 0) for count in counts)


def clear_copies(conn: sa.Connection, contents: Sequence[str]) -> int:
    """Images of other names that are gone and had this content lose their vectors; returns how many."""
    given = dialects.rows_of(conn, "given", {"content": sa.Text()}, [(content,) for content in contents])
    same = sa.select(images.c.id).join(given, given.c.content == images.c.content)
    ids = conn.scalars(same.where(in_state(State.GONE))).all()
    statement = sa.select(*images.c["id", "shard_id"]).where(dialects.has_id(conn, ids), in_state(State.GONE))
    rows = conn.execute(dialects.lock_rows(conn, statement.order_by(images.c.id))).all()
    these = dialects.has_id(conn, [row.id for row in rows])
    conn.execute(sa.update(images).where(these).values(**settle.FORGOTTEN))
    settle.leave_shards(conn, [row.shard_id for row in rows])
    return len(rows)


def earlier_compaction(conn: sa.Connection, lease: Lease) -> bool:
    """Whether a compaction is at work that began before `lease`: it may have copied vectors of rows that are gone
    since."""
    earlier = (lease_table.c.device == leases.COMPACTION, lease_table.c.id < lease.id)
    return conn.scalar(sa.select(lease_table.c.id).where(leases.is_live(conn), *earlier).limit(1)) is not None


def shards_after(conn: sa.Connection, after: int, limit: int) -> list[KnownShard]:
    """The next shards in order of id, beginning behind `after`, with the retired ones."""
    columns = shards.c["id", "path", "rows", "live_rows", "bytes", "checksum", "engine"]
    statement = sa.select(*columns, shards.c.retired.is_not(None)).where(shards.c.id > after)
    return [
        KnownShard(OldShard(*row), bool(retired))
        for *row, retired in conn.execute(statement.order_by(shards.c.id).limit(limit))
    ]


def _beneath(target: Target) -> tuple[sa.ColumnElement[bool], ...]:
    """Paths are compared by their bytes on both databases, so that the files of a folder are neighbours."""
    if not target.path:
        return (images.c.root == target.root,)
    path = images.c.path
    between = (path >= target.path, path < f"{target.path}0")
    return (images.c.root == target.root, *between, (path == target.path) | (path > f"{target.path}/"))
