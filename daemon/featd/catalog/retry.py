"""`retry-failed`: failed images become pending again, with fresh budgets; and `failures`, the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd.catalog import counters, dialects
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


def failed_after(
    conn: sa.Connection, after_id: int, limit: int, *, kind: Kind | None = None, since: datetime | None = None
) -> list[FailedImage]:
    """The next failed rows in order of id, beginning behind `after_id`."""
    columns = (
        images.c.id,
        images.c.root,
        images.c.path,
        images.c.version,
        images.c.error_kind,
        images.c.error,
        images.c.errors,
        images.c.crashes,
        images.c.updated_at,
    )
    statement = sa.select(*columns).where(in_state(State.FAILED), images.c.id > after_id)
    if kind is not None:
        statement = statement.where(images.c.error_kind == kind)
    if since is not None:
        statement = statement.where(images.c.updated_at >= since)
    rows = conn.execute(statement.order_by(images.c.id).limit(limit))
    return [FailedImage(r[0], r[1], r[2], r[3], Kind(r[4]), r[5] or "", r[6], r[7], r[8]) for r in rows]


def walk_failed(
    read: Callable[[], Any],
    *,
    kind: Kind | None = None,
    since: datetime | None = None,
    wanted: Callable[[FailedImage], bool] = lambda _: True,
    batch: int = 2000,
) -> Iterator[list[FailedImage]]:
    """Every failed image that is `wanted`, batch by batch; `read` opens a reading transaction."""
    after = 0
    while True:
        with read() as conn:
            rows = failed_after(conn, after, batch, kind=kind, since=since)
        if not rows:
            return
        after = rows[-1].id
        if chosen := [row for row in rows if wanted(row)]:
            yield chosen


def retry(conn: sa.Connection, ids: Sequence[int]) -> int:
    """Make those of `ids` pending that still are failed. Budgets start afresh; a suspect still runs alone."""
    moment = dialects.now(conn)
    failed = (dialects.has_id(conn, ids), images.c.state == State.FAILED)
    dialects.lock_images(conn, *failed)
    freed = dialects.changed(
        conn,
        sa.update(images)
        .where(*failed)
        .values(
            state=State.PENDING,
            errors=0,
            crashes=0,
            kills=0,
            error_kind=None,
            error=None,
            not_before=moment,
            updated_at=moment,
        ),
    )
    counters.apply(conn, StateChanges({State.FAILED: -freed, State.PENDING: freed}))
    return freed
