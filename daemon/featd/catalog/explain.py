"""Everything the catalog knows of one image, for `featd explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import attempts, images, leases, shards


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """A failed attempt."""

    version: int
    at: datetime
    kind: str
    message: str
    worker: str | None


@dataclass(frozen=True, slots=True)
class Explained:
    """One image's row, with what it names. `worker` holds it now; `made_by` made its vector."""

    id: int
    root: str
    path: str
    state: str
    version: int
    size: int
    mtime_ns: int
    priority: int
    due_in_seconds: float
    suspect: bool
    errors: int
    crashes: int
    kills: int
    error_kind: str | None
    error: str | None
    content: str | None
    updated_at: datetime
    shard: str | None
    shard_row: int | None
    shard_version: int | None
    worker: str | None
    made_by: str | None
    attempts: Sequence[PastAttempt]


def explain(conn: sa.Connection, root: str, path: str) -> Explained | None:
    """The image at `path` (catalog form) of `root`; None where the catalog has none."""
    row = conn.execute(sa.select(images).where(images.c.root == root, images.c.path == path)).first()
    if row is None:
        return None
    shard = conn.execute(sa.select(shards).where(shards.c.id == row.shard_id)).first()
    moment = conn.scalar(sa.select(dialects.now(conn)))
    return Explained(
        id=row.id,
        root=row.root,
        path=row.path,
        state=row.state,
        version=row.version,
        size=row.size,
        mtime_ns=row.mtime_ns,
        priority=row.priority,
        due_in_seconds=max(0.0, (row.not_before - moment).total_seconds()) if moment else 0.0,
        suspect=row.suspect,
        errors=row.errors,
        crashes=row.crashes,
        kills=row.kills,
        error_kind=row.error_kind,
        error=row.error,
        content=row.content,
        updated_at=row.updated_at,
        shard=shard.path if shard else None,
        shard_row=row.shard_row,
        shard_version=row.shard_version,
        worker=_worker(conn, row.lease_id),
        made_by=_worker(conn, shard.lease_id) if shard else None,
        attempts=[
            PastAttempt(one.version, one.at, one.kind, one.message, _worker(conn, one.lease_id))
            for one in conn.execute(
                sa.select(attempts).where(attempts.c.image_id == row.id).order_by(attempts.c.id)
            ).all()
        ],
    )


def _worker(conn: sa.Connection, lease_id: int | None) -> str | None:
    """`cpu:0 on host, pid 12, engine caffe` of a lease."""
    if lease_id is None:
        return None
    row = conn.execute(sa.select(leases).where(leases.c.id == lease_id)).first()
    return None if row is None else f"{row.device} on {row.host}, pid {row.pid}, engine {row.engine}"
