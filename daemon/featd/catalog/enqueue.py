"""Enqueueing: files that a scan or the watch found become rows, and rows of files that vanished become gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, counters, dialects, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images
from featd.states import PRIORITY_BACKLOG, State


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file on disk: its path in catalog form, relative to its root, with its size and time."""

    path: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class Enqueued:
    """How many of the found files were new, had changed, had returned, or cannot be held by the catalog."""

    new: int = 0
    changed: int = 0
    returned: int = 0
    refused: int = 0

    def add(self, other: Enqueued) -> None:
        self.new += other.new
        self.changed += other.changed
        self.returned += other.returned
        self.refused += other.refused

    @property
    def any(self) -> bool:
        """Whether any row became pending."""
        return bool(self.new or self.changed or self.returned)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A row that is not gone, to check whether its file still exists."""

    id: int
    path: str


_FILE: dict[str, sa.types.TypeEngine[Any]] = {
    "path": sa.Text(),
    "size": sa.BigInteger(),
    "mtime_ns": sa.BigInteger(),
}


def enqueue(
    conn: sa.Connection,
    root: str,
    found: Sequence[FoundFile],
    *,
    priority: int = PRIORITY_BACKLOG,
    delay_seconds: float = 0.0,
) -> Enqueued:
    """Bring the catalog up to `found`, files under `root`: new, changed and returned ones become pending.

    A changed file of a claimed row only raises its version: the settle that follows sees it. A row that is
    pending at a lower priority moves up and waits no longer than `delay_seconds`. Needs no lease and can be repeated.
    """
    rows = dialects.rows_of(conn, "found", _FILE, [(file.path, file.size, file.mtime_ns) for file in found])
    known = images.alias("known")
    differing = (
        sa.select(rows.c.path, rows.c.size, rows.c.mtime_ns, known.c.id)
        .select_from(rows.outerjoin(known, (known.c.root == root) & (known.c.path == rows.c.path)))
        .where(
            known.c.id.is_(None)
            | (known.c.size != rows.c.size)
            | (known.c.mtime_ns != rows.c.mtime_ns)
            | (known.c.state == State.GONE)
            | ((known.c.state == State.PENDING) & (known.c.priority < priority))
        )
    )
    new: list[FoundFile] = []
    differ: dict[int, FoundFile] = {}
    for path, size, mtime_ns, image_id in conn.execute(differing).all():
        file = FoundFile(path, size, mtime_ns)
        if image_id is None:
            new.append(file)
        else:
            differ[image_id] = file
    result = Enqueued(new=_insert(conn, root, new, priority, delay_seconds))
    changes = _change(conn, differ, priority, delay_seconds, result)
    changes.move(None, State.PENDING, result.new)
    counters.apply(conn, changes)
    return result


def walk_known(
    catalog: sa.Engine, root: str, limit: int, *, folder: str = "", after: str = ""
) -> Iterator[Sequence[KnownFile]]:
    """Every row of `root` (or of its `folder`) that is not gone, in order of path, beginning behind `after`."""
    return connect.walk(catalog, known_files, lambda file: file.path, after, root, limit, folder)


def known_files(conn: sa.Connection, after: str, root: str, limit: int, folder: str = "") -> list[KnownFile]:
    """The next of these rows, beginning behind the path `after`."""
    statement = (
        sa.select(images.c.id, images.c.path)
        .where(images.c.root == root, images.c.path > after, images.c.state != State.GONE)
        .order_by(images.c.path)
        .limit(limit)
    )
    if folder:
        # Paths are compared by their bytes on both databases, so that the files of a folder are neighbours.
        statement = statement.where(images.c.path > f"{folder}/", images.c.path < f"{folder}0")
    return [KnownFile(*row) for row in conn.execute(statement)]


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
    counters.apply(conn, changes)
    return len(rows)


def _insert(
    conn: sa.Connection, root: str, new: Sequence[FoundFile], priority: int, delay_seconds: float
) -> int:
    """Make rows for those of `new` that have none yet; returns how many."""
    if not new:
        return 0
    rows = dialects.rows_of(conn, "new", _FILE, sorted((file.path, file.size, file.mtime_ns) for file in new))
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
    return dialects.changed(conn, statement)


def _change(
    conn: sa.Connection, differ: dict[int, FoundFile], priority: int, delay_seconds: float, result: Enqueued
) -> StateChanges:
    """Bring these rows up to their files, and count them in `result`."""
    changes = StateChanges()
    if not differ:
        return changes
    columns = images.c["id", "state", "size", "mtime_ns", "version", "shard_id", "shard_version"]
    statement = sa.select(*columns).where(dialects.has_id(conn, sorted(differ))).order_by(images.c.id)
    claimed: list[tuple[Any, ...]] = []
    again: list[tuple[Any, ...]] = []
    back: list[tuple[Any, ...]] = []
    sooner: list[int] = []
    for row in conn.execute(dialects.lock_rows(conn, statement)).all():
        file = differ[row.id]
        same = (row.size, row.mtime_ns) == (file.size, file.mtime_ns)
        entry = (row.id, file.size, file.mtime_ns, row.version + 1)
        if row.state == State.CLAIMED:
            if not same:
                claimed.append(entry)
                result.changed += 1
        elif row.state == State.GONE:
            result.returned += 1
            if same and row.shard_id is not None and row.shard_version == row.version:
                back.append((row.id, file.size, file.mtime_ns, row.version))
                changes.move(State.GONE, State.DONE)
            else:
                again.append(entry)
                changes.move(State.GONE, State.PENDING)
        elif not same:
            result.changed += 1
            again.append(entry)
            changes.move(State(row.state), State.PENDING)
        elif row.state == State.PENDING:
            sooner.append(row.id)
    per_row = ("size", "mtime_ns", "version")
    moment = dialects.now(conn)
    clean = {**verdicts.CLEAN, "updated_at": moment}
    fresh = {
        **clean,
        "state": State.PENDING,
        "priority": priority,
        "not_before": dialects.later(conn, delay_seconds),
    }
    dialects.update_each(conn, sa.true(), per_row, claimed, {})
    dialects.update_each(conn, sa.true(), per_row, again, fresh)
    dialects.update_each(conn, sa.true(), per_row, back, {**clean, "state": State.DONE})
    if sooner:
        asked = (dialects.has_id(conn, sooner), images.c.priority < priority)
        due = dialects.later(conn, delay_seconds)
        sooner_of = sa.case((images.c.not_before > due, due), else_=images.c.not_before)
        conn.execute(sa.update(images).where(*asked).values(priority=priority, not_before=sooner_of))
    return changes
