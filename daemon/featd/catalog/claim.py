"""Claiming: pending rows under a lease, and giving claimed rows back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from featd.catalog import counters, dialects, leases
from featd.catalog.counters import StateChanges
from featd.catalog.leases import Lease
from featd.catalog.schema import images
from featd.states import PRIORITIES, State


@dataclass(frozen=True, slots=True)
class ClaimedImage:
    """One row as it stood when it was claimed.

    `known_content` is the hash of the bytes that the image's last vector was made from: where the file still
    has it, the vector is still right and no forward pass is needed.
    """

    id: int
    root: str
    path: str
    size: int
    mtime_ns: int
    version: int
    suspect: bool
    known_content: str | None


_CLAIMED = (
    images.c.id,
    images.c.root,
    images.c.path,
    images.c.size,
    images.c.mtime_ns,
    images.c.version,
    images.c.suspect,
    sa.case((images.c.shard_id.is_not(None), images.c.content)).label("known_content"),
)


def claim(conn: sa.Connection, lease: Lease, limit: int, roots: Sequence[str]) -> list[ClaimedImage]:
    """Claim up to `limit` due rows of `roots` (those online) under `lease`, oldest first within priority."""
    leases.hold(conn, lease)
    claimed: list[ClaimedImage] = []
    values = {"state": State.CLAIMED, "lease_id": lease.id, "updated_at": dialects.now(conn)}
    # One statement per priority: each walks the claim index from its first due row to its last and no further.
    for priority in PRIORITIES:
        due = (
            sa.select(images.c.id)
            .where(
                images.c.state == sa.literal_column(f"'{State.PENDING}'"),  # literal: the index is partial
                images.c.priority == priority,
                images.c.not_before <= dialects.now(conn),
                images.c.root.in_(roots),
            )
            .order_by(images.c.not_before, images.c.id)
            .limit(limit - len(claimed))
        )
        rows = conn.execute(dialects.claim_rows(conn, due, values, _CLAIMED))
        claimed += [ClaimedImage(*row) for row in rows]
        if len(claimed) >= limit:
            break
    claimed_order = sorted(claimed, key=lambda image: image.id)
    counters.apply(conn, StateChanges({State.PENDING: -len(claimed), State.CLAIMED: len(claimed)}))
    return claimed_order


def release(conn: sa.Connection, lease: Lease, ids: Sequence[int]) -> int:
    """Give back rows that were claimed and not worked on; nothing is counted against them."""
    leases.hold(conn, lease)
    return _to_pending(conn, lease, dialects.has_id(conn, ids))


def release_unheld(conn: sa.Connection, lease: Lease, held: Sequence[int]) -> int:
    """Give back every row of the lease that the worker does not hold: what a claim took whose answer was lost."""
    leases.hold(conn, lease)
    return _to_pending(conn, lease, sa.not_(dialects.has_id(conn, held)))


def _to_pending(conn: sa.Connection, lease: Lease, which: sa.ColumnElement[bool]) -> int:
    freed = conn.execute(
        sa.update(images)
        .where(images.c.lease_id == lease.id, images.c.state == State.CLAIMED, which)
        .values(state=State.PENDING, lease_id=None, updated_at=dialects.now(conn))
        .returning(images.c.id)
    ).all()
    counters.apply(conn, StateChanges({State.CLAIMED: -len(freed), State.PENDING: len(freed)}))
    return len(freed)
