"""Putting right what a check has found. Each function is one transaction, takes its locks in the order images by id,
shards, counters, and does nothing to rows that have changed since the check; it needs no lease."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from featd.catalog import (
    connect,
    corrections,
    counters,
    dialects,
    feed,
    instance,
    settle,
    stats,
    values,
    verdicts,
    verify,
)
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images, shards
from featd.catalog.verify import REPAIRS, Recount
from featd.states import SealedShard, State

ROUNDS = 5
"""How often a recount is taken up again that another repair has made void."""


def forget_vectors(conn: sa.Connection, named: Mapping[int, int | None]) -> int:
    """The vectors of these images are lost (image -> the shard that its row names). The rows forget them, and done ones
    become pending; returns how many."""
    which = dialects.has_id(conn, sorted(named))
    statement = sa.select(*images.c["id", "state", "shard_id"]).where(which).order_by(images.c.id)
    locked = conn.execute(dialects.lock_rows(conn, statement)).all()
    rows = [row for row in locked if row.shard_id == named[row.id]]
    done = [row.id for row in rows if row.state == State.DONE]
    forgetting = sa.update(images).values(settle.FORGOTTEN)
    conn.execute(forgetting.where(dialects.has_id(conn, [row.id for row in rows if row.state != State.DONE])))
    moment = dialects.now(conn)
    again = {**verdicts.CLEAN, "state": State.PENDING, "not_before": moment, "updated_at": moment}
    conn.execute(forgetting.where(dialects.has_id(conn, done)).values(**again))
    settle.leave_shards(conn, [row.shard_id for row in rows])
    feed.note(conn, done)
    counters.apply(conn, StateChanges({State.DONE: -len(done), State.PENDING: len(done)}))
    return len(done)


def forget_shards(conn: sa.Connection, shard_ids: Collection[int]) -> None:
    """Remove the rows of those lost shards that no image names any more."""
    ids = sorted(shard_ids)
    conn.execute(
        dialects.lock_rows(conn, sa.select(shards.c.id).where(shards.c.id.in_(ids)).order_by(shards.c.id))
    )
    settle.remove_nameless(conn, ids)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pending image without a vector, as it was when its file was found to have the content of a shard's row."""

    id: int
    size: int
    mtime_ns: int
    shard_row: int
    content: str


def waiting(conn: sa.Connection, image_ids: Sequence[int]) -> list[Any]:
    """Those of these images that are pending and have no vector: id, root, path, size, mtime_ns."""
    columns = images.c["id", "root", "path", "size", "mtime_ns"]
    which = (dialects.has_id(conn, image_ids), images.c.state == State.PENDING, images.c.shard_id.is_(None))
    return list(conn.execute(sa.select(*columns).where(*which).order_by(images.c.id)))


def adopt(
    conn: sa.Connection, shard: SealedShard, lease_id: int, fingerprint: str, orphans: Sequence[Orphan]
) -> int:
    """Record a shard that is on stable storage in its place, and make the images done whose vectors it has; returns how
    many. 0 where the catalog knows it by now, or no image waits for it."""
    which = (
        dialects.has_id(conn, sorted(one.id for one in orphans)),
        images.c.state == State.PENDING,
        images.c.shard_id.is_(None),
    )
    columns = images.c["id", "size", "mtime_ns", "version"]
    rows = conn.execute(
        dialects.lock_rows(conn, sa.select(*columns).where(*which).order_by(images.c.id))
    ).all()
    found = {row.id: row for row in rows}
    mine = [one for one in orphans if one.id in found and found[one.id][1:3] == (one.size, one.mtime_ns)]
    if not mine or stats.known_shards(conn, [shard.name]) or instance.fingerprint(conn) != fingerprint:
        return 0
    row = {**asdict(shard), "live_rows": len(mine), "lease_id": lease_id, "created_at": dialects.now(conn)}
    shard_id = conn.execute(sa.insert(shards).values(**row).returning(shards.c.id)).scalar_one()
    given = [(one.id, one.shard_row, found[one.id].version, one.content) for one in mine]
    done = {**verdicts.CLEAN, "state": State.DONE, "shard_id": shard_id, "updated_at": dialects.now(conn)}
    dialects.update_each(conn, sa.true(), ("shard_row", "shard_version", "content"), given, done)
    corrections.note_adopted(conn, shard_id)
    feed.note(conn, [one.id for one in mine])
    counters.apply(conn, StateChanges({State.PENDING: -len(mine), State.DONE: len(mine)}))
    return len(mine)


def mend_counts(catalog: sa.Engine) -> Recount:
    """Count everything, and put the counters right by what they lack; returns what that was. Workers may run."""
    for _ in range(ROUNDS):
        with connect.reading(verify.snapshot(catalog)) as conn:
            lacking = verify.recount(conn)
        if not lacking or connect.transact(catalog, _add, lacking):
            break
    return lacking


def _add(conn: sa.Connection, lacking: Recount) -> bool:
    """False where another repair was quicker."""
    values.add_values(conn, {REPAIRS: 0})
    values.lock(conn, REPAIRS)  # before all others: only repairs take it
    if verify.repairs(conn) != lacking.repairs:
        return False
    values.set_value(conn, REPAIRS, lacking.repairs + 1)
    for shard_id in sorted(lacking.live_rows):
        raised = sa.update(shards).values(live_rows=shards.c.live_rows + lacking.live_rows[shard_id])
        conn.execute(raised.where(shards.c.id == shard_id))
    counters.apply(conn, StateChanges(lacking.states))
    return True
