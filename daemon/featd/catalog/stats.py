"""What `featd status` and a drain ask. Counts come from the counters; no table is counted but small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import images, leases, shards
from featd.states import MAX_BACKOFF_SECONDS, PRIORITIES, State


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
        .where(images.c.state == State.FAILED)
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
    statement = sa.select(images.c.root).where(images.c.state.in_([State.PENDING, State.CLAIMED])).distinct()
    return set(conn.execute(statement).scalars())


def next_due_seconds(conn: sa.Connection) -> float | None:
    """Seconds until the next pending row is due; 0 where one is due now; None where none is pending."""
    soonest = conn.scalar(sa.select(sa.func.min(images.c.not_before)).where(images.c.state == State.PENDING))
    if soonest is None:
        return None
    moment = conn.scalar(sa.select(dialects.now(conn)))
    return float(max(0.0, (soonest - moment).total_seconds())) if moment is not None else 0.0


def mend_far_future(conn: sa.Connection) -> int:
    """Rows that may not be claimed before a time further off than the longest back-off become due.

    A wall clock that was wrong for a while leaves such times behind. Called by the janitor; needs no lease.
    """
    mended = conn.execute(
        sa.update(images)
        .where(
            images.c.state == State.PENDING,
            images.c.priority.in_(PRIORITIES),
            images.c.not_before > dialects.later(conn, MAX_BACKOFF_SECONDS * 1.1),
        )
        .values(not_before=dialects.now(conn))
        .returning(images.c.id)
    ).all()
    return len(mended)


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


def walk_live(read: Any, batch: int = 4096) -> Iterator[Sequence[LiveVector]]:
    """Every live vector, batch by batch, in order of image id; `read` opens a reading transaction."""
    after = 0
    while True:
        with read() as conn:
            rows = live_vectors(conn, after, batch)
        if not rows:
            return
        yield rows
        after = rows[-1].image_id


def known_shards(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that are shards of this catalog."""
    return set(conn.execute(sa.select(shards.c.name).where(shards.c.name.in_(names))).scalars())
