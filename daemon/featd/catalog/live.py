"""Where the live vectors are: what readers ask of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from featd.catalog import connect, dialects, stats
from featd.catalog.schema import images, shards
from featd.states import State

FEW = 5000
"""Rows that are looked through for a done image, from either end: no index tells which are done."""


class LiveVector(NamedTuple):
    """Where an image's live vector is. A tuple, which is made three times as fast as a frozen dataclass: readers of all
    vectors make one for each image."""

    image_id: int
    root: str
    path: str
    version: int
    shard_path: str
    shard_row: int
    checksum: str
    """Of the shard's file."""


@dataclass(frozen=True, slots=True)
class NamedShard:
    """The shard that an image's row names, whatever the row's state."""

    id: int
    path: str
    checksum: str


_LIVE: sa.Select[Any] = (
    sa.select(
        *images.c["id", "root", "path", "shard_version"], shards.c.path, images.c.shard_row, shards.c.checksum
    )
    .join(shards, shards.c.id == images.c.shard_id)
    .where(images.c.state == State.DONE)
    .order_by(images.c.id)
)


def live_vectors(conn: sa.Connection, after_id: int, limit: int) -> list[LiveVector]:
    """The next done images in order of id, beginning behind `after_id`."""
    statement = _LIVE.where(images.c.id > after_id).limit(limit)
    return list(map(LiveVector._make, conn.execute(statement)))


def live_of(conn: sa.Connection, image_ids: Sequence[int]) -> list[LiveVector]:
    """The live vectors of these images, in order of id."""
    return [LiveVector(*row) for row in conn.execute(_LIVE.where(dialects.has_id(conn, image_ids)))]


def live_at(conn: sa.Connection, path: str, root: str | None) -> list[LiveVector]:
    """The live vectors of the images at `path` (in catalog form) of `root`, or of any root."""
    roots = stats.all_roots(conn) if root is None else [root]
    found = _LIVE.where(images.c.root.in_(roots), images.c.path == path)
    return [LiveVector(*row) for row in conn.execute(found)]


def states_at(conn: sa.Connection, root: str, paths: Sequence[str]) -> dict[str, tuple[State, int, int]]:
    """Path -> state, size and mtime_ns of the images at these paths of a root."""
    given = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in paths])
    statement = sa.select(*images.c["path", "state", "size", "mtime_ns"])
    statement = statement.join(given, (images.c.root == root) & (images.c.path == given.c.path))
    return {path: (State(state), size, time) for path, state, size, time in conn.execute(statement)}


def still_live(conn: sa.Connection, before: Sequence[LiveVector]) -> list[LiveVector]:
    """Where the vectors of these images are now, in order of id; without those that are not live any more."""
    return live_of(conn, [image.image_id for image in before])


def walk_live(catalog: sa.Engine, limit: int) -> Iterator[Sequence[LiveVector]]:
    """Every live vector, in order of image id."""
    return connect.walk(catalog, live_vectors, lambda image: image.image_id, 0, limit)


def named_shards(conn: sa.Connection, image_ids: Sequence[int]) -> dict[int, NamedShard]:
    """Image id -> the shard that its row names."""
    statement = (
        sa.select(images.c.id, *shards.c["id", "path", "checksum"])
        .join(shards, shards.c.id == images.c.shard_id)
        .where(dialects.has_id(conn, image_ids))
    )
    return {image_id: NamedShard(*shard) for image_id, *shard in conn.execute(statement)}


def some_done(conn: sa.Connection, root: str) -> str | None:
    """The path of a done image of `root` among the FEW oldest or newest rows; None where none of them is."""
    for order in (images.c.id, images.c.id.desc()):
        few = sa.select(*images.c["root", "path", "state"]).order_by(order).limit(FEW).subquery()
        wanted = sa.select(few.c.path).where(few.c.root == root, few.c.state == State.DONE)
        path: str | None = conn.scalar(wanted.limit(1))
        if path is not None:
            return path
    return None
