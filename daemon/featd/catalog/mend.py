"""What a wrong wall clock left behind: the janitor puts it right."""

from __future__ import annotations

import sqlalchemy as sa

from featd.catalog import dialects, stats
from featd.catalog.schema import images, in_state, shards
from featd.states import MAX_BACKOFF_SECONDS, PRIORITIES, State

MEND_ROWS = 5000
"""Rows that one call mends."""


def mend_far_future(conn: sa.Connection) -> int:
    """Make pending rows due whose time lies further in the future than the longest back-off: at most MEND_ROWS of them;
    returns how many.

    A wall clock that was wrong for a while causes such times. Called by the janitor; needs no lease.
    """
    mended = 0
    horizon = dialects.later_once(conn, MAX_BACKOFF_SECONDS * 1.1)
    for root in stats.queued_roots(conn):
        for priority in PRIORITIES:
            queue = (in_state(State.PENDING), images.c.root == root, images.c.priority == priority)
            # From the end of the claim index: usually one look-up, and never more rows than are mended.
            far = sa.select(images.c.id).where(*queue, images.c.not_before > horizon)
            last = far.order_by(images.c.not_before.desc(), images.c.id.desc()).limit(MEND_ROWS - mended)
            if ids := conn.execute(last).scalars().all():
                these = (dialects.has_id(conn, ids), images.c.state == State.PENDING)
                dialects.lock_images(conn, *these)
                due = sa.update(images).where(*these).values(not_before=dialects.now(conn))
                mended += dialects.changed(conn, due)
            if mended >= MEND_ROWS:
                return mended
    return mended


def mend_retired(conn: sa.Connection) -> None:
    """Shards that were retired in the future count as retired now: else their files stay until that time has come.

    Called by the janitor; needs no lease.
    """
    ahead = shards.c.retired > dialects.later_once(conn, 0.0)
    conn.execute(sa.update(shards).where(ahead).values(retired=dialects.now(conn)))
