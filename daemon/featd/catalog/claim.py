"""Claiming: pending rows under a lease, and giving claimed rows back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from featd.catalog import corrections, counters, dialects, gone, leases, pause
from featd.catalog.counters import StateChanges
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images, in_state
from featd.states import PRIORITIES, ClaimedImage, Lease, State

_CLAIMED = (
    *images.c["id", "root", "path", "size", "mtime_ns", "version", "priority"],
    # Else SQLAlchemy looks at each value of each row, for the sake of this one.
    sa.type_coerce(images.c.suspect, sa.Integer),
    *images.c["content", "shard_id"],
)
_ID = itemgetter(0)

GROUP_ROOTS = 16
"""How many roots' queues one statement merges: each adds to the time that the database plans for."""


def claim(
    conn: sa.Connection,
    lease: Lease,
    limit: int,
    roots: Sequence[str],
    priorities: Sequence[int] = PRIORITIES,
) -> list[ClaimedImage]:
    """Claim up to `limit` due rows of `roots` (those online) under `lease`, oldest first within priority; none while
    the lease's host is paused."""
    leases.hold(conn, lease)
    if pause.holds(conn, lease):
        return []
    claimed: list[ClaimedImage] = []
    lacked, seeks = corrections.requeued(conn), gone.any_kept(conn)
    # One walk of the claim index per priority and root, from its first due row to its last and no further.
    for priority in priorities:
        for group in _groups(conn, roots, priority):
            if (wanted := limit - len(claimed)) <= 0:
                break
            rows = _claim_first(conn, lease, group, priority, wanted)
            claimed += [_claimed(row, lacked, seeks) for row in sorted(rows, key=_ID)]
    counters.apply(conn, StateChanges({State.PENDING: -len(claimed), State.CLAIMED: len(claimed)}))
    return claimed


def _claim_first(
    conn: sa.Connection, lease: Lease, roots: Sequence[str], priority: int, limit: int
) -> Sequence[Sequence[Any]]:
    if len(roots) == 1:
        place = {"of_root": roots[0], "of_priority": priority, "most": limit}
        return dialects.tuples(conn.execute(_claim_of_one(conn), {"new_lease": lease.id, **place}))
    queues = [_queue(conn, root, priority) for root in roots]
    return dialects.claim_first_of_all(conn, queues, limit, _taken(conn, lease.id), _CLAIMED)


@dialects.once
def _claim_of_one(conn: sa.Connection) -> sa.Update:
    queue = _queue(conn, sa.bindparam("of_root"), sa.bindparam("of_priority"))
    most = sa.bindparam("most", type_=sa.Integer)
    return dialects.claim_first(conn, queue, most, _taken(conn, sa.bindparam("new_lease")), _CLAIMED)


def _taken(conn: sa.Connection, lease_id: int | sa.BindParameter[int]) -> dict[str, Any]:
    return {"state": State.CLAIMED, "lease_id": lease_id, "updated_at": dialects.now(conn)}


def claim_at(conn: sa.Connection, lease: Lease, root: str, found: Sequence[FoundFile]) -> list[ClaimedImage]:
    """Claim those of these files that are pending, due or not, and are as they were found. Each is told to be read and
    hashed before anything else (`seeks`)."""
    leases.hold(conn, lease)
    files = {file.path: (file.size, file.mtime_ns) for file in found}
    paths = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in sorted(files)])
    at = sa.select(images.c.id).join(paths, (images.c.root == root) & (images.c.path == paths.c.path))
    ids = conn.scalars(at).all()
    pending = sa.select(*_CLAIMED).where(dialects.has_id(conn, ids), images.c.state == State.PENDING)
    rows = conn.execute(dialects.lock_rows(conn, pending.order_by(images.c.id))).all()
    rows = [row for row in rows if files[row.path] == (row.size, row.mtime_ns)]
    which = dialects.has_id(conn, [row.id for row in rows])
    conn.execute(sa.update(images).where(which).values(**_taken(conn, lease.id)))
    lacked = corrections.requeued(conn)
    counters.apply(conn, StateChanges({State.PENDING: -len(rows), State.CLAIMED: len(rows)}))
    return [_claimed(row, lacked, True) for row in rows]


def _claimed(row: Sequence[Any], lacked: Mapping[str, int], seeks: bool) -> ClaimedImage:
    # Not in SQL: SQLite 3.40 can evaluate NULL as NOT NULL in the RETURNING of an UPDATE.
    image_id, root, path, size, mtime_ns, version, priority, suspect, content, shard_id = row
    lacks: tuple[str, ...] = ()
    if shard_id is None:
        content = None
    elif lacked:
        lacks = tuple(name for name, newest in lacked.items() if shard_id <= newest)
    # _make: half the time of a call with as many arguments, and each image is one.
    return ClaimedImage._make(
        (image_id, root, path, size, mtime_ns, version, priority, suspect == 1, content, seeks, lacks)
    )


def _groups(conn: sa.Connection, roots: Sequence[str], priority: int) -> Iterator[Sequence[str]]:
    """The roots that have due rows, longest waiting first, in groups of GROUP_ROOTS. A single root is not looked up."""
    if len(roots) > 1:
        given = dialects.rows_of(conn, "given", {"root": sa.Text()}, [(root,) for root in roots])
        head = _queue(conn, given.c.root, priority).with_only_columns(images.c.not_before).limit(1)
        heads = sa.select(given.c.root, head.correlate(given).scalar_subquery().label("head")).subquery()
        statement = sa.select(heads.c.root).where(heads.c.head.is_not(None)).order_by(heads.c.head)
        roots = conn.execute(statement).scalars().all()
    for at in range(0, len(roots), GROUP_ROOTS):
        yield roots[at : at + GROUP_ROOTS]


def _queue(
    conn: sa.Connection, root: str | sa.ColumnElement[str], priority: int | sa.ColumnElement[int]
) -> sa.Select[Any]:
    """The due rows of one root and priority, in the order of `ix_images_claim`."""
    return (
        sa.select(images.c.id, images.c.not_before)
        .where(
            in_state(State.PENDING),
            images.c.root == root,
            images.c.priority == priority,
            images.c.not_before <= dialects.now_once(conn),
        )
        .order_by(images.c.not_before, images.c.id)
    )


def release(conn: sa.Connection, lease: Lease, ids: Sequence[int]) -> int:
    """Make claimed rows that were not worked on pending again; no attempt is counted."""
    leases.hold(conn, lease)
    return _to_pending(conn, lease, images.c.state == State.CLAIMED, dialects.has_id(conn, ids))


def release_unheld(conn: sa.Connection, lease: Lease, held: Sequence[int]) -> int:
    """Make every row of the lease pending that is not in `held`: rows of a claim whose COMMIT reply was lost."""
    leases.hold(conn, lease)
    return _to_pending(conn, lease, in_state(State.CLAIMED), sa.not_(dialects.has_id(conn, held)))


def _to_pending(conn: sa.Connection, lease: Lease, *which: sa.ColumnElement[bool]) -> int:
    freed = leases.free_rows(conn, lease.id, *which)
    counters.apply(conn, StateChanges({State.CLAIMED: -freed, State.PENDING: freed}))
    return freed
