"""Corrections of pixels that the vectors of a catalog lack, and having the files concerned read again.

Two settings name, for each correction, the newest shard that may have vectors without it, 0 where there is none.
LACKED: the user has not decided yet. REQUEUED: the user had the files requeued, and workers look at each of them (see
`claim`). A correction that LACKED does not name is newer than the last upgrade. Compaction leaves the shards alone for
which the user has not decided, and raises REQUEUED where it moves vectors (`follow`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, feed, instance, values, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images, shards
from featd.states import PRIORITY_BACKLOG, Correction, State

LACKED = "corrections"
REQUEUED = "corrections.requeued"

_ENDS = {
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "others": (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"),
}
"""How names end, by format: only that is in the catalog. A name that ends otherwise may be of any format."""
_UNNAMED = "unnamed"
_FORMATS = {
    Correction.TIFF_ALPHA: ("tiff",),
    Correction.TIFF_ORIENTATION: ("tiff",),
    Correction.BMP_FIELDS: ("bmp",),
    Correction.EXIF_LONG: ("jpeg", "png", "webp"),
    Correction.PNG_ANIMATION: ("png",),
}
_ONLY_WITH_ORIENTATION = {Correction.TIFF_ORIENTATION: "ignore", Correction.EXIF_LONG: "apply"}


def unnoted(conn: sa.Connection) -> list[Correction]:
    """The corrections that are newer than the last upgrade of this catalog."""
    noted = values.get_value(conn, LACKED) or {}
    return [correction for correction in Correction if correction not in noted]


def note_shards(conn: sa.Connection) -> None:
    """The shards that are there lack the corrections that are new. A new catalog has none, and so lacks nothing. Needs
    that no worker runs."""
    newest = conn.scalar(sa.select(sa.func.max(shards.c.id))) or 0
    orientation = ((instance.spec(conn) or {}).get("preprocess") or {}).get("orientation")
    noted = {
        correction: newest if _ONLY_WITH_ORIENTATION.get(correction, orientation) == orientation else 0
        for correction in unnoted(conn)
    }
    values.set_value(conn, LACKED, {**(values.get_value(conn, LACKED) or {}), **noted})


def undecided(conn: sa.Connection) -> dict[Correction, int]:
    """Correction -> the newest shard that may lack it, where the user has not decided yet."""
    noted = values.get_value(conn, LACKED) or {}
    return {Correction(name): newest for name, newest in noted.items() if newest and name in set(Correction)}


def requeued(conn: sa.Connection) -> dict[str, int]:
    """The same for the corrections whose files were requeued."""
    return values.get_value(conn, REQUEUED) or {}


def follow(conn: sa.Connection, old: Sequence[int], new: int) -> None:
    """Vectors moved from the shards `old` into the shard `new`: workers look at files of these, too."""
    looked_at = requeued(conn)
    moved = {name: new for name, newest in looked_at.items() if newest and min(old) <= newest}
    if moved:
        values.set_value(conn, REQUEUED, {**looked_at, **moved})


def lacked(conn: sa.Connection) -> dict[str, int]:
    """Both together. A gone image is not requeued, so that its vector lacks them all."""
    return requeued(conn) | {str(correction): newest for correction, newest in undecided(conn).items()}


def count(conn: sa.Connection, lacked: Mapping[Correction, int], roots: Sequence[str]) -> Counter[Correction]:
    """How many done images of `roots` each correction may concern, by the ends of their names. Reads every row."""
    dialects.lift_limits(conn)
    form = sa.case(
        *((_ends_with(ends), form) for form, ends in _ENDS.items()),
        else_=_UNNAMED,
    )
    counted: Counter[Correction] = Counter()
    for newest in set(lacked.values()):
        statement = (
            sa.select(form.label("form"), sa.func.count()).where(*_done_by(newest, roots)).group_by("form")
        )
        found = {row[0]: row[1] for row in conn.execute(statement)}
        for correction, mine in lacked.items():
            if mine == newest:
                counted[correction] = sum(found.get(form, 0) for form in (*_FORMATS[correction], _UNNAMED))
    return counted


def requeue(
    catalog: sa.Engine,
    chosen: Mapping[Correction, int],
    roots: Sequence[str],
    advance: Callable[[int], None] = lambda count: None,
) -> int:
    """Make the done images of `roots` pending that the corrections `chosen` may concern; returns how many, and tells
    `advance` meanwhile. Workers may run. If it is interrupted, it can be repeated."""
    connect.transact(catalog, _look_from_now_on, chosen)
    count = 0
    for ids in _walk(catalog, chosen, roots, 2000):
        count += connect.transact(catalog, _to_pending, ids)
        advance(count)
    connect.transact(catalog, keep, list(chosen))
    return count


def keep(conn: sa.Connection, chosen: Sequence[Correction]) -> None:
    """Ask no more about these corrections."""
    values.lock(conn, LACKED)
    decided = dict.fromkeys(chosen, 0)
    values.set_value(conn, LACKED, {**(values.get_value(conn, LACKED) or {}), **decided})


def note_adopted(conn: sa.Connection, shard_id: int) -> None:
    """The vectors of a shard that is new to this catalog were made before: they may lack what others lack."""
    for name in (LACKED, REQUEUED):
        noted = values.get_value(conn, name) or {}
        if any(noted.values()):
            values.set_value(conn, name, {one: shard_id if newest else 0 for one, newest in noted.items()})


def _look_from_now_on(conn: sa.Connection, chosen: Mapping[Correction, int]) -> None:
    values.lock(conn, LACKED)
    values.set_value(conn, REQUEUED, {**requeued(conn), **chosen})


def _walk(
    catalog: sa.Engine, chosen: Mapping[Correction, int], roots: Sequence[str], limit: int
) -> Iterator[Sequence[int]]:
    return connect.walk(catalog, candidates, lambda image_id: image_id, 0, chosen, roots, limit)


def candidates(
    conn: sa.Connection, after: int, chosen: Mapping[Correction, int], roots: Sequence[str], limit: int
) -> list[int]:
    """The ids of the next of these images, beginning behind `after`, and of those that a worker has in its hands."""
    dialects.lift_limits(conn)  # the next page may be many rows away
    concerned = []
    for correction, newest in chosen.items():
        ends = [end for form in _FORMATS[correction] for end in _ENDS[form]]
        known = [end for listed in _ENDS.values() for end in listed]
        named = _ends_with(ends) | sa.not_(_ends_with(known))
        concerned.append(sa.and_(named, images.c.shard_id <= newest))
    # Those in a worker's hands may be settled as unchanged, before the worker knows that it has to look.
    statement = sa.select(images.c.id).where(
        images.c.id > after,
        images.c.state.in_([State.DONE, State.CLAIMED]),
        _is_of(roots),
        sa.or_(*concerned),
    )
    return list(conn.execute(statement.order_by(images.c.id).limit(limit)).scalars())


def _to_pending(conn: sa.Connection, ids: Sequence[int]) -> int:
    """Those of `ids` that are done become pending at a new version; of those that are claimed only the version rises.
    The vector and its content stay, so that a worker can tell."""
    states = [State.DONE, State.CLAIMED]
    statement = sa.select(*images.c["id", "state"]).where(
        dialects.has_id(conn, ids), images.c.state.in_(states)
    )
    rows = conn.execute(dialects.lock_rows(conn, statement.order_by(images.c.id))).all()
    done = [row.id for row in rows if row.state == State.DONE]
    fresh = {
        **verdicts.CLEAN,
        "state": State.PENDING,
        "priority": PRIORITY_BACKLOG,
        "not_before": dialects.now(conn),
        "updated_at": dialects.now(conn),
    }
    raised = sa.update(images).values(version=images.c.version + 1)
    conn.execute(raised.where(dialects.has_id(conn, [row.id for row in rows if row.state == State.CLAIMED])))
    conn.execute(raised.where(dialects.has_id(conn, done)).values(**fresh))
    feed.note(conn, done)
    counters.apply(conn, StateChanges({State.DONE: -len(done), State.PENDING: len(done)}))
    return len(done)


def _done_by(newest: int, roots: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return images.c.state == State.DONE, images.c.shard_id <= newest, _is_of(roots)


def _is_of(roots: Sequence[str]) -> sa.ColumnElement[bool]:
    """As an expression that no index serves: with that of roots, each page of a walk would sort all rows of a root."""
    return sa.cast(images.c.root, sa.Text).concat("").in_(roots)


def _ends_with(ends: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.or_(*(sa.func.lower(images.c.path).like(f"%{end}") for end in ends))
