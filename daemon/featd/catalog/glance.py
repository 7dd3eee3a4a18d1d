"""Single images, for who looks at the page: the newest, some that failed, one by its id or path. Each is found by an
index, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd.catalog.schema import images, in_state
from featd.states import State


@dataclass(frozen=True, slots=True)
class Glimpse:
    """An image's row. `path` is in catalog form; `error` and `error_kind` are of a failed one."""

    id: int
    root: str
    path: str
    state: str
    version: int
    size: int
    mtime_ns: int
    error_kind: str | None
    error: str | None
    updated_at: datetime


_COLUMNS = [images.c[name] for name in Glimpse.__dataclass_fields__]


def newest(conn: sa.Connection, count: int) -> list[Glimpse]:
    """The images that were found last, the last one first."""
    return _glimpses(conn, sa.select(*_COLUMNS).order_by(images.c.id.desc()).limit(count))


def failed(conn: sa.Connection, kind: str, count: int) -> list[Glimpse]:
    """Some images that failed in this way, the newest first."""
    statement = sa.select(*_COLUMNS).where(in_state(State.FAILED), images.c.error_kind == kind)
    return _glimpses(conn, statement.order_by(images.c.id.desc()).limit(count))


def by_id(conn: sa.Connection, image_id: int) -> Glimpse | None:
    """The image of this id; None where there is none."""
    return next(iter(_glimpses(conn, sa.select(*_COLUMNS).where(images.c.id == image_id))), None)


def at(conn: sa.Connection, roots: Sequence[str], path: str) -> list[Glimpse]:
    """The images at this path, in catalog form, of these roots."""
    statement = sa.select(*_COLUMNS).where(images.c.root.in_(roots), images.c.path == path)
    return _glimpses(conn, statement.order_by(images.c.root))


def beginning(conn: sa.Connection, root: str, start: str, count: int) -> list[Glimpse]:
    """Images of a root whose path begins so, in order of path."""
    if not start:
        return []
    # Not LIKE, for which neither database uses the index of paths.
    last = start[:-1] + chr(min(ord(start[-1]) + 1, 0x10FFFF))
    statement = sa.select(*_COLUMNS).where(
        images.c.root == root, images.c.path >= start, images.c.path < last
    )
    return _glimpses(conn, statement.order_by(images.c.path).limit(count))


def _glimpses(conn: sa.Connection, statement: sa.Select[Any]) -> list[Glimpse]:
    return [Glimpse(*row) for row in conn.execute(statement)]
