"""Where the live vectors are: what readers ask of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from featd.catalog import connect
from featd.catalog.schema import images, shards
from featd.states import State


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
    columns = [*images.c["id", "root", "path", "shard_version"], shards.c.path, images.c.shard_row]
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
