"""What compaction asks of the catalog, and the one transaction with which it moves images into another shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from featd.catalog import corrections, dialects, leases, settle
from featd.catalog.schema import images, in_state, shards
from featd.catalog.schema import leases as lease_table
from featd.crash_points import CrashPoint, crash_point
from featd.errors import FeatdError
from featd.states import Lease, SealedShard, State


@dataclass(frozen=True, slots=True)
class OldShard:
    """A shard that may be merged. `live_rows`: rows that an image still names, whatever its state."""

    id: int
    path: str
    rows: int
    live_rows: int
    bytes: int
    checksum: str
    engine: str


@dataclass(frozen=True, slots=True)
class Move:
    """An image whose vector goes from a row of an old shard into a row of the new one."""

    image_id: int
    shard_id: int
    shard_row: int
    new_row: int


@dataclass(frozen=True, slots=True)
class GoneImage:
    """An image that is gone and has a vector. `for_long`: for more days than were asked about."""

    content: str
    id: int
    for_long: bool


class SwapError(FeatdError):
    """Some shards cannot be replaced: somebody else has replaced them, or their counters are wrong. `shard_ids`."""

    def __init__(self, message: str, shard_ids: Sequence[int]) -> None:
        super().__init__(message)
        self.shard_ids = shard_ids


def small_shards(
    conn: sa.Connection, after_id: int, limit: int, below_rows: int, below_bytes: int
) -> list[OldShard]:
    """The next shards that have fewer rows and bytes than these, or of which half or more is named by no image."""
    # A requeue that the user may still ask for finds images by their shards: they stay where they are until then.
    after_id = max(after_id, *corrections.undecided(conn).values(), 0)
    columns = shards.c["id", "path", "rows", "live_rows", "bytes", "checksum", "engine"]
    small = (shards.c.live_rows < below_rows) & (shards.c.bytes < below_bytes)
    half_dead = shards.c.live_rows * 2 <= shards.c.rows
    statement = sa.select(*columns).where(
        shards.c.id > after_id, shards.c.retired.is_(None), small | half_dead
    )
    return [OldShard(*row) for row in conn.execute(statement.order_by(shards.c.id).limit(limit))]


def rows_that_name(conn: sa.Connection, shard_id: int, image_ids: Sequence[int]) -> dict[int, int]:
    """Image id -> its row in the shard, for those of `image_ids` that name this shard. Found by id: no index tells
    which images a shard has."""
    named = sa.select(images.c.id, images.c.shard_row).where(
        dialects.has_id(conn, image_ids), images.c.shard_id == shard_id
    )
    return {row.id: row.shard_row for row in conn.execute(named)}


def swap(
    conn: sa.Connection, lease: Lease, shard: SealedShard | None, moves: Sequence[Move], old: Sequence[int]
) -> None:
    """Record `shard`, let the images of `moves` name it that still name their old row, and retire the shards `old`,
    which no image may name then. LeaseLostError; SwapError.

    The new shard is on stable storage before this is called. The states of the images do not matter, and stay.
    """
    leases.hold(conn, lease)
    by_id = {move.image_id: move for move in moves}
    columns = images.c["id", "shard_id", "shard_row"]
    statement = sa.select(*columns).where(dialects.has_id(conn, sorted(by_id))).order_by(images.c.id)
    still = [
        by_id[row.id]
        for row in conn.execute(dialects.lock_rows(conn, statement)).all()
        if (row.shard_id, row.shard_row) == (by_id[row.id].shard_id, by_id[row.id].shard_row)
    ]
    moment = dialects.now(conn)
    if shard is not None:
        values = {**asdict(shard), "live_rows": len(still), "lease_id": lease.id, "created_at": moment}
        new_id = conn.execute(sa.insert(shards).values(**values).returning(shards.c.id)).scalar_one()
        rows = [(move.image_id, move.new_row) for move in still]
        dialects.update_each(conn, sa.true(), ("shard_row",), rows, {"shard_id": new_id})
        corrections.follow(conn, old, new_id)
    _retire(conn, Counter(move.shard_id for move in still), old)
    crash_point(CrashPoint.COMPACTION_SWAPPING)


def _retire(conn: sa.Connection, moved: Counter[int], old: Sequence[int]) -> None:
    which = shards.c.id.in_(old)
    statement = sa.select(*shards.c["id", "live_rows", "retired"]).where(which).order_by(shards.c.id)
    found = {row.id: row for row in conn.execute(dialects.lock_rows(conn, statement)).all()}
    if lost := [one for one in old if one not in found or found[one].retired is not None]:
        raise SwapError("another compaction has replaced them", lost)
    if wrong := [one for one in old if found[one].live_rows != moved[one]]:
        raise SwapError(
            "the catalog counts other images in them than name them: `featd verify` tells more", wrong
        )
    conn.execute(sa.update(shards).where(which).values(live_rows=0, retired=dialects.now(conn)))


def removable(conn: sa.Connection, grace_seconds: float, limit: int) -> list[tuple[int, str]]:
    """(id, path) of retired shards that nobody can need any more: their time of grace is over, and their worker cannot
    look for them after an unknown COMMIT, since its lease has ended or it has settled another shard since. The newest
    shard of all stays: its row tells how far the catalog has come."""
    open_leases = sa.select(lease_table.c.id).where(lease_table.c.ended_at.is_(None))
    last = sa.select(sa.func.max(shards.c.id)).where(shards.c.lease_id.in_(open_leases))
    statement = (
        sa.select(*shards.c["id", "path"])
        .where(
            shards.c.retired < dialects.later_once(conn, -grace_seconds),
            shards.c.id.not_in(last.group_by(shards.c.lease_id)),
            shards.c.id < sa.select(sa.func.max(shards.c.id)).scalar_subquery(),
        )
        .order_by(shards.c.id)
        .limit(limit)
    )
    return [(row.id, row.path) for row in conn.execute(statement)]


def forget_shards(conn: sa.Connection, ids: Sequence[int]) -> None:
    """Delete the rows of retired shards whose files are removed."""
    conn.execute(sa.delete(shards).where(shards.c.id.in_(ids), shards.c.retired.is_not(None)))


def gone_images(conn: sa.Connection, after: tuple[str, int], keep_days: float, limit: int) -> list[GoneImage]:
    """The next of them, behind `after` in the order of content and id, which their index has."""
    content, image_id = after
    behind = (images.c.content > content) | (images.c.id > image_id)
    columns = (images.c.content, images.c.id, _vanished_before(conn, keep_days))
    statement = sa.select(*columns).where(in_state(State.GONE), images.c.content >= content, behind)
    ordered = statement.order_by(images.c.content, images.c.id).limit(limit)
    return [GoneImage(row[0], row[1], bool(row[2])) for row in conn.execute(ordered)]


def forget_vectors(conn: sa.Connection, ids: Sequence[int], keep_days: float) -> int:
    """Those of `ids` that still are gone for so long lose their vectors; returns how many."""
    gone = (images.c.state == State.GONE, images.c.content.is_not(None))
    which = (dialects.has_id(conn, sorted(ids)), *gone, _vanished_before(conn, keep_days))
    statement = sa.select(images.c.id, images.c.shard_id).where(*which).order_by(images.c.id)
    rows = conn.execute(dialects.lock_rows(conn, statement)).all()
    these = dialects.has_id(conn, [row.id for row in rows])
    conn.execute(sa.update(images).where(these).values(**settle.FORGOTTEN))
    settle.leave_shards(conn, [row.shard_id for row in rows])
    return len(rows)


def _vanished_before(conn: sa.Connection, days: float) -> sa.ColumnElement[bool]:
    return images.c.updated_at < dialects.later_once(conn, -days * 86_400)
