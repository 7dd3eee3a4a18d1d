"""Deleting the rows of images that have been gone for long: an image that comes back later is a new one."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from featd.catalog import counters, dialects, settle
from featd.catalog.counters import StateChanges
from featd.catalog.schema import attempts, images
from featd.states import State


def gone_before(conn: sa.Connection, after_id: int, to_id: int, days: float, limit: int) -> list[int]:
    """The first ids, behind `after_id` and up to `to_id`, of images that have been gone for so many days."""
    statement = sa.select(images.c.id).where(
        images.c.id > after_id, images.c.id <= to_id, *_gone_for(conn, days)
    )
    return list(conn.execute(statement.order_by(images.c.id).limit(limit)).scalars())


def purge(conn: sa.Connection, ids: Sequence[int], days: float) -> int:
    """Delete those of `ids` that still are gone for so long, with their vectors and attempts; returns how many.

    Called by the janitor; needs no lease. The ids must be few: their attempts are found one by one.
    """
    statement = sa.select(*images.c["id", "shard_id"]).where(
        dialects.has_id(conn, sorted(ids)), *_gone_for(conn, days)
    )
    rows = conn.execute(dialects.lock_rows(conn, statement.order_by(images.c.id))).all()
    these = [row.id for row in rows]
    conn.execute(sa.delete(attempts).where(attempts.c.image_id.in_(these)))
    conn.execute(sa.delete(images).where(dialects.has_id(conn, these)))
    settle.leave_shards(conn, [row.shard_id for row in rows])
    counters.apply(conn, StateChanges({State.GONE: -len(rows)}))
    return len(rows)


def _gone_for(conn: sa.Connection, days: float) -> tuple[sa.ColumnElement[bool], ...]:
    # A row that is gone changes no more but when it loses its vector, which leaves updated_at as it is.
    return images.c.state == State.GONE, images.c.updated_at < dialects.later_once(conn, -days * 86_400)
