"""What `featd status` and a drain ask. Counts come from the counters; no table is counted but small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, dialects
from featd.catalog.schema import images, in_state, leases, shards
from featd.states import MAX_BACKOFF_SECONDS, PRIORITIES, State

MEND_ROWS = 5000
"""Rows that one statement of `mend_far_future` mends."""


@dataclass(frozen=True, slots=True)
class ShardTotals:
    """All shards together. `live_rows` are still named by an image; `bytes` are on disk."""

    count: int
    rows: int
    live_rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A live lease."""

    device: str
    host: str
    pid: int
    engine: str
    done: int
    failed: int
    started_at: datetime
    expires_in_seconds: float
    shares: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FailureLine:
    """How many images failed in one way, and one of them (root and path)."""

    kind: str
    count: int
    example: str


def shard_totals(conn: sa.Connection) -> ShardTotals:
    total = sa.func.coalesce
    row = conn.execute(
        sa.select(
            sa.func.count(),
            total(sa.func.sum(shards.c.rows), 0),
            total(sa.func.sum(shards.c.live_rows), 0),
            total(sa.func.sum(shards.c.bytes), 0),
        )
    ).one()
    return ShardTotals(*(int(value) for value in row))


def workers(conn: sa.Connection) -> list[WorkerLine]:
    """The live leases, in order of host and device."""
    left = (leases.c.expires_at - dialects.lease_now(conn)).label("left")
    statement = sa.select(leases, left).where(leases.c.ended_at.is_(None), left > 0)
    if (boot := dialects.boot_id(conn)) is not None:
        statement = statement.where(leases.c.boot_id == boot)
    rows = conn.execute(statement.order_by(leases.c.host, leases.c.device, leases.c.id))
    return [
        WorkerLine(r.device, r.host, r.pid, r.engine, r.done, r.failed, r.started_at, float(r.left), r.shares)
        for r in rows
    ]


def failures_by_kind(conn: sa.Connection) -> list[FailureLine]:
    """The kinds of failure, most frequent first."""
    grouped = (
        sa.select(images.c.error_kind, sa.func.count().label("n"), sa.func.max(images.c.id).label("example"))
        .where(in_state(State.FAILED))
        .group_by(images.c.error_kind)
        .subquery()
    )
    statement = (
        sa.select(grouped.c.error_kind, grouped.c.n, images.c.root, images.c.path)
        .join(images, images.c.id == grouped.c.example)
        .order_by(grouped.c.n.desc(), grouped.c.error_kind)
    )
    return [FailureLine(kind, n, f"{root}/{path}") for kind, n, root, path in conn.execute(statement)]


def pending_roots(conn: sa.Connection) -> set[str]:
    """The roots that have pending or claimed rows."""
    # By lease: for a DISTINCT over the claimed, SQLite would walk the unique index from end to end.
    open_leases = sa.select(leases.c.id).where(leases.c.ended_at.is_(None))
    claimed = sa.select(images.c.root).where(in_state(State.CLAIMED), images.c.lease_id.in_(open_leases))
    return {*_queued_roots(conn), *conn.execute(claimed).scalars()}


def _queued_roots(conn: sa.Connection) -> list[str]:
    """The roots that have pending rows: one step into the claim index for each, however many rows wait."""
    roots: list[str] = []
    first = sa.select(images.c.root).where(in_state(State.PENDING)).order_by(images.c.root).limit(1)
    statement = first
    while (root := conn.scalar(statement)) is not None:
        roots.append(root)
        statement = first.where(images.c.root > root)
    return roots


def next_due_seconds(conn: sa.Connection) -> float | None:
    """Seconds until the next pending row is due; 0 where one is due now; None where none is pending."""
    soonest: list[datetime] = []
    for root in _queued_roots(conn):
        for priority in PRIORITIES:
            first = (
                sa.select(images.c.not_before)
                .where(in_state(State.PENDING), images.c.root == root, images.c.priority == priority)
                .order_by(images.c.not_before, images.c.id)
                .limit(1)
            )
            if (due := conn.scalar(first)) is not None:
                soonest.append(due)
    if not soonest:
        return None
    moment: datetime = conn.execute(sa.select(dialects.now(conn))).scalar_one()
    return max(0.0, (min(soonest) - moment).total_seconds())


def mend_far_future(conn: sa.Connection) -> int:
    """Rows that may not be claimed before a time further off than the longest back-off become due.

    A wall clock that was wrong for a while leaves such times behind. Called by the janitor; needs no lease.
    """
    mended = 0
    horizon = dialects.later_once(conn, MAX_BACKOFF_SECONDS * 1.1)
    for root in _queued_roots(conn):
        for priority in PRIORITIES:
            queue = (in_state(State.PENDING), images.c.root == root, images.c.priority == priority)
            # From the far end of the claim index: mostly one step, and a walk of no more than what is mended.
            far = sa.select(images.c.id).where(*queue, images.c.not_before > horizon)
            last = far.order_by(images.c.not_before.desc(), images.c.id.desc()).limit(MEND_ROWS)
            while ids := conn.execute(last).scalars().all():
                these = (dialects.has_id(conn, ids), images.c.state == State.PENDING)
                dialects.lock_images(conn, *these)
                due = sa.update(images).where(*these).values(not_before=dialects.now(conn))
                mended += dialects.changed(conn, due)
    return mended


@dataclass(frozen=True, slots=True)
class LiveVector:
    """Where an image's live vector is."""

    image_id: int
    root: str
    path: str
    version: int
    shard_path: str
    shard_row: int


def live_vectors(conn: sa.Connection, after_id: int, limit: int) -> list[LiveVector]:
    """The next done images in order of id, beginning behind `after_id`."""
    columns = (
        images.c.id,
        images.c.root,
        images.c.path,
        images.c.shard_version,
        shards.c.path,
        images.c.shard_row,
    )
    statement = (
        sa.select(*columns)
        .join(shards, shards.c.id == images.c.shard_id)
        .where(images.c.state == State.DONE, images.c.id > after_id)
        .order_by(images.c.id)
        .limit(limit)
    )
    return [LiveVector(*row) for row in conn.execute(statement)]


def walk_live(catalog: sa.Engine, limit: int) -> Iterator[Sequence[LiveVector]]:
    """Every live vector, in order of image id."""
    return connect.walk(catalog, live_vectors, lambda image: image.image_id, 0, limit)


def known_shards(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that are shards of this catalog."""
    given = dialects.rows_of(conn, "given", {"name": sa.Text()}, [(name,) for name in names])
    statement = sa.select(shards.c.name).join(given, given.c.name == shards.c.name)
    return set(conn.execute(statement).scalars())
