"""The vectors of images that are gone: a file that was moved or renamed takes that of its old name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import images, in_state, shards
from featd.states import State


@dataclass(frozen=True, slots=True)
class KeptVector:
    """Where the vector of an image that is gone is."""

    image_id: int
    shard_row: int
    shard_id: int
    shard_path: str
    checksum: str
    """Of the shard's file."""


_KEPT = images.alias("kept")
"""Made once: SQLAlchemy takes a millisecond for it."""
# Not IS NOT NULL, for which SQLite reads the whole index.
_ANY_KEPT = sa.select(sa.literal(1)).where(in_state(State.GONE), images.c.content > "").limit(1)


def any_kept(conn: sa.Connection) -> bool:
    """Whether an image that is gone had a vector. Costs one look into an index."""
    return conn.scalar(_ANY_KEPT) == 1


def kept_vectors(conn: sa.Connection, contents: Collection[str]) -> dict[str, KeptVector]:
    """Content -> the vector that an image which is gone was given for it. Any one of them: they are all alike.

    None is in a shard that compaction has replaced; even so, its file may not be there.
    """
    given = dialects.rows_of(conn, "given", {"content": sa.Text()}, [(content,) for content in contents])
    one = (
        sa.select(images.c.id)
        .where(in_state(State.GONE), images.c.content == given.c.content, images.c.shard_id.is_not(None))
        .limit(1)
        .scalar_subquery()
    )
    chosen = sa.select(given.c.content, one.label("id")).subquery()
    statement = (
        sa.select(chosen.c.content, *_KEPT.c["id", "shard_row"], *shards.c["id", "path", "checksum"])
        .join(_KEPT, _KEPT.c.id == chosen.c.id)
        .join(shards, shards.c.id == _KEPT.c.shard_id)
        .where(shards.c.retired.is_(None))
    )
    return {content: KeptVector(*where) for content, *where in conn.execute(statement)}
