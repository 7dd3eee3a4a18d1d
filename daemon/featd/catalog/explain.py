"""Everything the catalog knows of one image, for `featd explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import attempts, images, leases, shards
from featd.states import ADOPTED


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
    shard_checksum: str | None
    shard_row: int | None
    shard_version: int | None
    worker: str | None
    made_by: str | None
    attempts: Sequence[PastAttempt]


def explain(conn: sa.Connection, root: str, path: str) -> Explained | None:
    """The image at `path` (catalog form) of `root`; None where the catalog has none."""
    own = [images.c[field.name] for field in fields(Explained) if field.name in images.c]
    found = sa.select(*own, images.c.not_before, images.c.lease_id, dialects.now(conn).label("now"))
    found = found.add_columns(
        shards.c.path.label("shard"), shards.c.checksum, shards.c.lease_id.label("maker"), shards.c.engine
    )
    found = found.outerjoin(shards, shards.c.id == images.c.shard_id)
    row = conn.execute(found.where(images.c.root == root, images.c.path == path)).one_or_none()
    if row is None:
        return None
    past = sa.select(attempts).where(attempts.c.image_id == row.id).order_by(attempts.c.id)
    return Explained(
        **{column.name: getattr(row, column.name) for column in own},
        due_in_seconds=max(0.0, (row.not_before - row.now).total_seconds()),
        shard=row.shard,
        shard_checksum=row.checksum,
        worker=_worker(conn, row.lease_id),
        made_by=_made_by(conn, row.maker, row.engine),
        attempts=[
            PastAttempt(one.version, one.at, one.kind, one.message, _worker(conn, one.lease_id))
            for one in conn.execute(past).all()
        ],
    )


def _made_by(conn: sa.Connection, lease_id: int | None, engine: str | None) -> str | None:
    """Who made the vectors of a shard."""
    if engine == ADOPTED:
        return "a script; adopted from its file"
    return _worker(conn, lease_id) or (engine and f"engine {engine}, merged from other shards")


def _worker(conn: sa.Connection, lease_id: int | None) -> str | None:
    """`cpu:0 on host, pid 12, engine caffe` of a lease."""
    if lease_id is None:
        return None
    row = conn.execute(sa.select(leases).where(leases.c.id == lease_id)).first()
    return None if row is None else f"{row.device} on {row.host}, pid {row.pid}, engine {row.engine}"
