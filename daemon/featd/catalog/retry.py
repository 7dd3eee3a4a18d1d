"""`retry-failed`: failed images become pending again, with fresh budgets; and `failures`, the list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images, in_state
from featd.states import Kind, State


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A failed row."""

    id: int
    root: str
    path: str
    version: int
    kind: Kind
    message: str
    errors: int
    crashes: int
    failed_at: datetime


def walk_failed(
    catalog: sa.Engine, *, kind: Kind | None = None, since: datetime | None = None, limit: int = 2000
) -> Iterator[Sequence[FailedImage]]:
    """Every failed image, of one `kind` and failed `since` then where these are given, in order of id."""
    return connect.walk(catalog, failed_after, lambda image: image.id, 0, limit, kind, since)


def failed_after(
    conn: sa.Connection, after_id: int, limit: int, kind: Kind | None = None, since: datetime | None = None
) -> list[FailedImage]:
    """The next of these rows, beginning behind `after_id`."""
    columns = images.c[
        "id", "root", "path", "version", "error_kind", "error", "errors", "crashes", "updated_at"
    ]
    statement = sa.select(*columns).where(in_state(State.FAILED), images.c.id > after_id)
    if kind is not None:
        statement = statement.where(images.c.error_kind == kind)
    if since is not None:
        statement = statement.where(images.c.updated_at >= since)
    rows = conn.execute(statement.order_by(images.c.id).limit(limit))
    return [FailedImage(r[0], r[1], r[2], r[3], Kind(r[4]), r[5] or "", r[6], r[7], r[8]) for r in rows]


def retry(conn: sa.Connection, ids: Sequence[int]) -> int:
    """Make those of `ids` that are still failed pending, with fresh budgets. A suspect still runs alone."""
    moment = dialects.now(conn)
    failed = (dialects.has_id(conn, ids), images.c.state == State.FAILED)
    dialects.lock_images(conn, *failed)
    freed = dialects.changed(
        conn,
        sa.update(images)
        .where(*failed)
        .values(
            state=State.PENDING,
            error_kind=None,
            error=None,
            not_before=moment,
            updated_at=moment,
            **verdicts.UNSPENT,
        ),
    )
    counters.apply(conn, StateChanges({State.FAILED: -freed, State.PENDING: freed}))
    return freed
