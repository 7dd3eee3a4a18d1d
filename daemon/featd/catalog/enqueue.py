"""Enqueueing: files that a scan or the watch found become rows, and rows of files that vanished become gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, feed, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images
from featd.paths import stand_in
from featd.states import PRIORITY_ARRIVAL, PRIORITY_BACKLOG, Kind, State


class FoundFile(NamedTuple):
    """A file on disk: its path in catalog form, relative to its root, with its size and times. `ctime_ns` is None where
    it is not known."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int | None = None


FileRow: TypeAlias = tuple[str, int, int, int | None]
"""The same as a plain tuple: a scan makes millions of them, in half the time, and compares them with the driver's."""


class Reread(StrEnum):
    """Which of the files that have their size and mtime become pending, so that a worker reads them again."""

    NONE = "none"  # those in doubt are told to the caller
    DOUBTED = "doubted"  # those whose ctime has moved
    ALL = "all"


@dataclass(slots=True)
class Enqueued:
    """How many of the found files were new, had changed, had returned, or are read again."""

    new: int = 0
    changed: int = 0
    returned: int = 0
    reread: int = 0
    refused: set[str] = field(default_factory=set)
    """The names under which files stand, as failed images, that the database refuses."""
    doubted: list[FoundFile] = field(default_factory=list)
    """Files of done rows whose ctime moved alone: perhaps they have other content."""

    def add(self, other: Enqueued) -> None:
        self.new += other.new
        self.changed += other.changed
        self.returned += other.returned
        self.reread += other.reread
        self.refused |= other.refused
        self.doubted += other.doubted

    @property
    def any(self) -> bool:
        """Whether any row became pending."""
        return bool(self.new or self.changed or self.returned or self.reread)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A row that is not gone, to check whether its file still exists."""

    id: int
    path: str


_FILE: dict[str, sa.types.TypeEngine[Any]] = {
    "path": sa.Text(),
    "size": sa.BigInteger(),
    "mtime_ns": sa.BigInteger(),
    "ctime_ns": sa.BigInteger(),
}


def enqueue(
    conn: sa.Connection,
    root: str,
    found: Sequence[FileRow],
    *,
    priority: int = PRIORITY_BACKLOG,
    delay_seconds: float = 0.0,
    heard: bool = False,
    reread: Reread = Reread.NONE,
    new: bool = False,
) -> Enqueued:
    """Bring the catalog up to `found`, files under `root`: new, changed and returned ones become pending.

    A changed file of a claimed row only raises its version: the settle that follows sees it. A row that is
    pending at a lower priority moves up and waits no longer than `delay_seconds`. Needs no lease and can be repeated.

    A ctime that moved alone makes no version: a failed row is tried again, a done one is in doubt. A ctime that was not
    known is filled in without a word. heard: an event told of these files, so that the done ones are in doubt anyway:
    a write through a mapping may move no time. new: most likely none of them has a row, so that they are added first
    and compared only where some had one.
    """
    result = Enqueued()
    if new:
        result.new = _insert(conn, root, found, priority, delay_seconds)
        if result.new == len(found):
            counters.apply(conn, StateChanges({State.PENDING: result.new}))
            return result
    rows = dialects.rows_of(conn, "found", _FILE, found)
    known = images.alias("known")
    differing = (
        sa.select(*rows.c, *known.c["id", "state", "size", "mtime_ns", "ctime_ns"])
        .select_from(rows.outerjoin(known, (known.c.root == root) & (known.c.path == rows.c.path)))
        .where(
            known.c.id.is_(None)
            | (known.c.size != rows.c.size)
            | (known.c.mtime_ns != rows.c.mtime_ns)
            | (known.c.ctime_ns.is_distinct_from(rows.c.ctime_ns) & rows.c.ctime_ns.is_not(None))
            | (known.c.state == State.GONE)
            | ((known.c.state == State.PENDING) & (known.c.priority < priority))
            | sa.literal(heard or reread is Reread.ALL)
        )
    )
    missing: list[FoundFile] = []
    differ: dict[int, FoundFile] = {}
    for *fields, image_id, state, size, mtime_ns, ctime_ns in conn.execute(differing).all():
        file = FoundFile(*fields)
        if image_id is None:
            missing.append(file)
        elif (
            state == State.DONE and reread is Reread.NONE and _in_doubt(file, size, mtime_ns, ctime_ns, heard)
        ):
            result.doubted.append(file)  # nothing is written, so nothing is locked
        else:
            differ[image_id] = file
    result.new += _insert(conn, root, missing, priority, delay_seconds)
    changes = _change(conn, differ, priority, delay_seconds, heard, reread, result)
    # The rows of some may have been purged since they were read.
    result.new += _insert(conn, root, list(differ.values()), priority, delay_seconds)
    changes.move(None, State.PENDING, result.new)
    counters.apply(conn, changes)
    return result


def refuse(conn: sa.Connection, root: str, file: FoundFile, why: str) -> bool:
    """A file that the database refuses becomes an image that failed, under the name that stands in for its path.
    Returns whether it was not yet."""
    place = file._replace(path=stand_in(file.path), size=min(file.size, 2**63 - 1))
    changes = StateChanges()
    changes.move(None, State.PENDING, _insert(conn, root, [place], PRIORITY_BACKLOG, 0.0))
    mine = (images.c.root == root, images.c.path == place.path)
    row = conn.execute(dialects.lock_rows(conn, sa.select(*images.c["id", "state"]).where(*mine))).one()
    if row.state in (State.FAILED, State.CLAIMED):  # a claimed row is its worker's
        return False
    failed = {
        **verdicts.CLEAN,
        "state": State.FAILED,
        "error_kind": Kind.CATALOG_REFUSED,
        "error": f"{verdicts.kept(why)}: {file.path}",
        "updated_at": dialects.now(conn),
    }
    conn.execute(sa.update(images).where(images.c.id == row.id).values(**failed))
    changes.move(State(row.state), State.FAILED)
    counters.apply(conn, changes)
    return True


def walk_known(catalog: sa.Engine, root: str, limit: int) -> Iterator[Sequence[KnownFile]]:
    """Every row of `root` that is not gone, in order of path."""
    return connect.walk(catalog, known_files, lambda file: file.path, "", root, limit)


def known_files(conn: sa.Connection, after: str, root: str, limit: int) -> list[KnownFile]:
    """The next of these rows, beginning behind the path `after`."""
    statement = (
        sa.select(images.c.id, images.c.path)
        .where(images.c.root == root, images.c.path > after, images.c.state != State.GONE)
        .order_by(images.c.path)
        .limit(limit)
    )
    return [KnownFile(*row) for row in conn.execute(statement)]


def known_between(
    conn: sa.Connection,
    root: str,
    after: str,
    upto: str | None,
    limit: int,
    *,
    folder: str = "",
    priority: int,
) -> list[tuple[Any, ...]]:
    """The first rows of `root` (or of its `folder`) that are not gone, behind the path `after` and not behind `upto`,
    in order of path: path, size, mtime and ctime, as in FileRow, so that a row which needs nothing equals its file.

    The size of a pending row of a lower priority than `priority` is None, since the row must move up.
    """
    size: sa.ColumnElement[int | None] = images.c.size
    if priority > PRIORITY_BACKLOG:
        lower = (images.c.state == State.PENDING) & (images.c.priority < priority)
        size = sa.case((lower, sa.null()), else_=size)
    statement = (
        sa.select(images.c.path, size, images.c.mtime_ns, images.c.ctime_ns)
        .where(images.c.root == root, images.c.path > after, images.c.state != State.GONE)
        .order_by(images.c.path)
        .limit(limit)
    )
    if folder:
        # Paths are compared by their bytes on both databases, so that the files of a folder are neighbours.
        statement = statement.where(images.c.path > f"{folder}/", images.c.path < f"{folder}0")
    if upto is not None:
        statement = statement.where(images.c.path <= upto)
    return list(dialects.tuples(conn.execute(statement)))


def known_at(conn: sa.Connection, root: str, paths: Sequence[str]) -> list[KnownFile]:
    """Those of `paths` that have a row which is not gone."""
    rows = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in paths])
    statement = (
        sa.select(images.c.id, images.c.path)
        .join(rows, rows.c.path == images.c.path)
        .where(images.c.root == root, images.c.state != State.GONE)
    )
    return [KnownFile(*row) for row in conn.execute(statement)]


def mark_gone(conn: sa.Connection, ids: Sequence[int], reason: str) -> int:
    """Rows whose files vanished, or that the configuration excludes now, become gone.

    Claimed rows are left to their worker, which will not find the file either. Needs no lease.
    """
    statement = (
        sa.select(images.c.id, images.c.state)
        .where(dialects.has_id(conn, ids), images.c.state.in_([State.PENDING, State.DONE, State.FAILED]))
        .order_by(images.c.id)
    )
    rows = conn.execute(dialects.lock_rows(conn, statement)).all()
    if not rows:
        return 0
    conn.execute(
        sa.update(images)
        .where(dialects.has_id(conn, [row.id for row in rows]))
        .values(state=State.GONE, error_kind=None, error=reason, suspect=False, updated_at=dialects.now(conn))
    )
    changes = StateChanges()
    for row in rows:
        changes.move(State(row.state), State.GONE)
    feed.note(conn, [row.id for row in rows if row.state == State.DONE])
    counters.apply(conn, changes)
    return len(rows)


def _insert(
    conn: sa.Connection, root: str, new: Sequence[FileRow], priority: int, delay_seconds: float
) -> int:
    """Make rows for those of `new` that have none yet; returns how many."""
    if not new:
        return 0
    rows = dialects.rows_of(conn, "new", _FILE, sorted(new))
    columns: dict[str, Any] = {
        "root": sa.literal(root),
        **{name: rows.c[name] for name in _FILE},
        "version": sa.literal(1),
        "state": sa.literal(State.PENDING.value),
        "priority": sa.literal(priority),
        "not_before": dialects.later(conn, delay_seconds),
        "suspect": sa.false(),
        **{budget: sa.literal(spent) for budget, spent in verdicts.UNSPENT.items()},
        "updated_at": dialects.now(conn),
    }
    # WHERE true: without it SQLite parses ON CONFLICT as the ON of a join.
    source = sa.select(*(value.label(name) for name, value in columns.items())).where(sa.true())
    statement = dialects.insert_if_new(conn, images, ["root", "path"]).from_select(list(columns), source)
    with dialects.without_checks(conn):  # of the columns that have any, all that is written stands above
        return dialects.changed(conn, statement)


def _change(
    conn: sa.Connection,
    differ: dict[int, FoundFile],
    priority: int,
    delay_seconds: float,
    heard: bool,
    reread: Reread,
    result: Enqueued,
) -> StateChanges:
    """Bring these rows up to their files, count them in `result`, and take them out of `differ`."""
    changes = StateChanges()
    if not differ:
        return changes
    columns = images.c["id", "state", "size", "mtime_ns", "ctime_ns", "version"]
    statement = sa.select(*columns).where(dialects.has_id(conn, sorted(differ))).order_by(images.c.id)
    claimed: list[tuple[Any, ...]] = []
    again: list[tuple[Any, ...]] = []
    known: list[tuple[int, int | None]] = []
    sooner: list[int] = []
    live_no_more: list[int] = []
    for row in conn.execute(dialects.lock_rows(conn, statement)).all():
        file = differ.pop(row.id)
        state = State(row.state)
        same = (row.size, row.mtime_ns) == (file.size, file.mtime_ns)
        next_version = (row.id, file.size, file.mtime_ns, file.ctime_ns, row.version + 1)
        moved = _in_doubt(file, row.size, row.mtime_ns, row.ctime_ns, heard)
        if state is State.CLAIMED:
            if not same:
                claimed.append(next_version)
                result.changed += 1
            elif moved:
                result.doubted.append(file)
        elif state is State.GONE or not same:
            result.returned += state is State.GONE
            result.changed += state is not State.GONE
            again.append(next_version)
            changes.move(state, State.PENDING)
            live_no_more += [row.id] if state is State.DONE else []
        elif state is State.PENDING:
            sooner.append(row.id)
            known.append((row.id, file.ctime_ns))
        elif reread is Reread.ALL or (
            moved and (reread is Reread.DOUBTED or (state is State.FAILED and row.ctime_ns != file.ctime_ns))
        ):
            result.changed += reread is Reread.NONE
            result.reread += reread is not Reread.NONE
            again.append(next_version)
            changes.move(state, State.PENDING)
            live_no_more += [row.id] if state is State.DONE else []
        elif moved and state is State.DONE:
            result.doubted.append(file)
        else:
            known.append((row.id, file.ctime_ns))
    per_row = ("size", "mtime_ns", "ctime_ns", "version")
    moment = dialects.now(conn)
    fresh = {
        **verdicts.CLEAN,
        "updated_at": moment,
        "state": State.PENDING,
        "priority": priority,
        "not_before": dialects.later(conn, delay_seconds),
    }
    dialects.update_each(conn, sa.true(), per_row, claimed, {})
    dialects.update_each(conn, sa.true(), per_row, again, fresh)
    feed.note(conn, live_no_more)
    dialects.update_each(conn, sa.true(), ("ctime_ns",), [one for one in known if one[1] is not None], {})
    if sooner:
        asked = (dialects.has_id(conn, sooner), images.c.priority < priority)
        due = dialects.later(conn, delay_seconds)
        sooner_of = sa.case((images.c.not_before > due, due), else_=images.c.not_before)
        conn.execute(sa.update(images).where(*asked).values(priority=priority, not_before=sooner_of))
    return changes


def _in_doubt(file: FoundFile, size: int, mtime_ns: int, ctime_ns: int | None, heard: bool) -> bool:
    """Whether a file with the size and mtime of its row may have other content."""
    moved = heard or ctime_ns not in (None, file.ctime_ns)
    return moved and file.ctime_ns is not None and (file.size, file.mtime_ns) == (size, mtime_ns)


def compare(
    conn: sa.Connection, root: str, read: Sequence[tuple[FoundFile, str | None]]
) -> tuple[int, list[FoundFile]]:
    """`read`: files that were in doubt, with the hash of their content, or None where it may not be read: then only
    another ctime brings doubt again. Done rows of other content become pending as a new version, the others get the
    ctime. Returns how many had other content, and the files whose rows are claimed: nothing can be said of them yet.
    """
    contents = {file.path: (file, content) for file, content in read}
    paths = dialects.rows_of(conn, "given", {"path": sa.Text()}, [(path,) for path in sorted(contents)])
    columns = images.c["id", "path", "state", "size", "mtime_ns", "version", "content"]
    ids = sa.select(images.c.id).join(paths, (images.c.root == root) & (images.c.path == paths.c.path))
    found = conn.execute(ids).scalars().all()
    statement = sa.select(*columns).where(dialects.has_id(conn, found)).order_by(images.c.id)
    claimed: list[FoundFile] = []
    same: list[tuple[Any, ...]] = []
    other: list[tuple[Any, ...]] = []
    for row in conn.execute(dialects.lock_rows(conn, statement)).all():
        file, content = contents[row.path]
        if row.state == State.CLAIMED:
            claimed.append(file)
        elif row.state == State.DONE and (row.size, row.mtime_ns) == (file.size, file.mtime_ns):
            rows, version = (
                (same, row.version) if content in (None, row.content) else (other, row.version + 1)
            )
            rows.append((row.id, file.ctime_ns, version))
    fresh = {
        **verdicts.CLEAN,
        "updated_at": dialects.now(conn),
        "state": State.PENDING,
        "priority": PRIORITY_ARRIVAL,
        "not_before": dialects.now(conn),
    }
    dialects.update_each(conn, sa.true(), ("ctime_ns", "version"), same, {})
    dialects.update_each(conn, sa.true(), ("ctime_ns", "version"), other, fresh)
    feed.note(conn, [image_id for image_id, *_ in other])
    counters.apply(conn, StateChanges({State.DONE: -len(other), State.PENDING: len(other)}))
    return len(other), claimed
