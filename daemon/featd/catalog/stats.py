"""What `featd status` and a drain ask. Counts come from the counters; only small tables are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd.catalog import counters, dialects, values
from featd.catalog.leases import OF_NO_WORKER, of_boot
from featd.catalog.schema import images, in_state, leases, shards
from featd.states import PRIORITIES, State

REMOVED = "removed."
"""The names of settings that tell which roots were removed; a scan of the root clears its own."""

UNKNOWN = "unknown"
"""The setting in which the janitor tells of the shards that the catalog does not know."""
NO_UNKNOWN = {"files": 0, "bytes": 0}


FAULTY = "verify.faulty"
"""The setting in which the janitor tells of shards that are missing, damaged or unreadable."""

ROUND = "verify.round"
"""The setting with the position of the slow round, which compares every shard with its checksum."""


@dataclass(frozen=True, slots=True)
class ShardTotals:
    """All shards together. `live_rows` are still named by an image; `bytes` are on disk. The `retired` ones, which are
    not among these, were merged into others, and their files are removed soon."""

    count: int
    rows: int
    live_rows: int
    bytes: int
    retired: int = 0
    retired_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A live lease."""

    device: str
    host: str
    pid: int
    engine: str
    done: int
    failed: int
    started_at: datetime
    expires_in_seconds: float
    shares: dict[str, Any]
    seat: str | None = None
    """What its lease carries of its seat."""


@dataclass(frozen=True, slots=True)
class DeviceTotals:
    """What all workers that ever ran on a device of a host have settled."""

    host: str
    device: str
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class FailureLine:
    """How many images failed in one way, and one of them (root and path)."""

    kind: str
    count: int
    example: str


def shard_totals(conn: sa.Connection) -> ShardTotals:
    retired = shards.c.retired.is_not(None)
    counted = [sa.literal(1), *shards.c["rows", "live_rows", "bytes"]]
    totals = [sa.func.sum(sa.case((retired, 0), else_=column)) for column in counted]
    totals += [sa.func.sum(sa.case((retired, column), else_=0)) for column in (sa.literal(1), shards.c.bytes)]
    row = conn.execute(sa.select(*(sa.func.coalesce(total, 0) for total in totals))).one()
    return ShardTotals(*(int(value) for value in row))


def bytes_needed(images_to_do: int, made: ShardTotals) -> int | None:
    """About how many bytes the vectors of so many images take in the store; None while there is no shard to go by."""
    return round(images_to_do * made.bytes / made.rows) if made.rows else None


def bytes_to_do(conn: sa.Connection) -> int | None:
    """About how many bytes the vectors of all images take that are still to do; None while there is no shard."""
    counts = counters.counts(conn)
    return bytes_needed(counts[State.PENDING] + counts[State.CLAIMED], shard_totals(conn))


def workers(conn: sa.Connection) -> list[WorkerLine]:
    """The live leases of workers, in order of host and device."""
    left = (leases.c.expires_at - dialects.lease_now(conn)).label("left")
    statement = sa.select(leases, left).where(
        leases.c.ended_at.is_(None), left > 0, leases.c.device.not_in(OF_NO_WORKER)
    )
    if (boot := dialects.boot_id(conn)) is not None:
        statement = statement.where(of_boot(boot))
    rows = conn.execute(statement.order_by(leases.c.host, leases.c.device, leases.c.id))
    return [
        WorkerLine(
            device=row.device,
            host=row.host,
            pid=row.pid,
            engine=row.engine,
            done=row.done,
            failed=row.failed,
            started_at=row.started_at,
            expires_in_seconds=float(row.left),
            shares=row.shares,
            seat=row.seat,
        )
        for row in rows
    ]


def device_totals(conn: sa.Connection) -> list[DeviceTotals]:
    """By host and device, over all leases, which are never deleted: these totals only grow."""
    columns = (leases.c.host, leases.c.device)
    sums = (sa.func.sum(leases.c.done), sa.func.sum(leases.c.failed))
    statement = sa.select(*columns, *sums).where(leases.c.device.not_in(OF_NO_WORKER)).group_by(*columns)
    return [
        DeviceTotals(host, device, int(done), int(failed))
        for host, device, done, failed in conn.execute(statement.order_by(*columns))
    ]


def failures_by_kind(conn: sa.Connection) -> list[FailureLine]:
    """The kinds of failure, most frequent first."""
    grouped = (
        sa.select(images.c.error_kind, sa.func.count().label("n"), sa.func.max(images.c.id).label("example"))
        .where(in_state(State.FAILED))
        .group_by(images.c.error_kind)
        .subquery()
    )
    statement = (
        sa.select(grouped.c.error_kind, grouped.c.n, images.c.root, images.c.path)
        .join(images, images.c.id == grouped.c.example)
        .order_by(grouped.c.n.desc(), grouped.c.error_kind)
    )
    return [FailureLine(kind, n, f"{root}/{path}") for kind, n, root, path in conn.execute(statement)]


def pending_roots(conn: sa.Connection) -> set[str]:
    """The roots that have pending or claimed rows."""
    # By lease: for a DISTINCT over the claimed rows, SQLite would read the whole unique index.
    open_leases = sa.select(leases.c.id).where(leases.c.ended_at.is_(None))
    claimed = sa.select(images.c.root).where(in_state(State.CLAIMED), images.c.lease_id.in_(open_leases))
    return {*queued_roots(conn), *conn.execute(claimed).scalars()}


def claims_of(conn: sa.Connection, host: str) -> bool:
    """Whether a worker of this host has a claimed image."""
    mine = sa.select(leases.c.id).where(leases.c.ended_at.is_(None), leases.c.host == host)
    claimed = sa.select(images.c.id).where(in_state(State.CLAIMED), images.c.lease_id.in_(mine))
    return conn.execute(claimed.limit(1)).first() is not None


def last_image(conn: sa.Connection) -> int:
    """The highest id of an image; 0 where there is none."""
    return int(conn.scalar(sa.select(sa.func.max(images.c.id))) or 0)


def known_roots(conn: sa.Connection) -> list[str]:
    """The roots that have rows and were not removed."""
    return [root for root in all_roots(conn) if not values.get_value(conn, REMOVED + root)]


def all_roots(conn: sa.Connection) -> list[str]:
    """The roots that have rows: one look-up in the index of paths for each."""
    roots: list[str] = []
    first = sa.select(images.c.root).order_by(images.c.root, images.c.path).limit(1)
    statement = first
    while (root := conn.scalar(statement)) is not None:
        roots.append(root)
        statement = first.where(images.c.root > root)
    return roots


def images_of_roots(conn: sa.Connection) -> dict[str, dict[State, int]]:
    """How many images of each state each root has. Reads every row: seconds for ten million."""
    dialects.lift_limits(conn)
    found: dict[str, dict[State, int]] = {}
    statement = sa.select(images.c.root, images.c.state, sa.func.count()).group_by(
        images.c.root, images.c.state
    )
    for root, state, count in conn.execute(statement.order_by(images.c.root)):
        found.setdefault(root, dict.fromkeys(State, 0))[State(state)] = count
    return found


def queued_roots(conn: sa.Connection) -> list[str]:
    """The roots that have pending rows: one look-up in the claim index for each root, however many rows wait."""
    roots: list[str] = []
    first = sa.select(images.c.root).where(in_state(State.PENDING)).order_by(images.c.root).limit(1)
    statement = first
    while (root := conn.scalar(statement)) is not None:
        roots.append(root)
        statement = first.where(images.c.root > root)
    return roots


def next_due_seconds(conn: sa.Connection) -> float | None:
    """Seconds until the next pending row is due; 0 where one is due now; None where none is pending."""
    if not (due := first_due(conn)):
        return None
    moment: datetime = conn.execute(sa.select(dialects.now(conn))).scalar_one()
    return max(0.0, (min(due.values()) - moment).total_seconds())


def overdue_seconds(conn: sa.Connection) -> dict[str, float]:
    """Root -> for how many seconds its pending row that is due longest could have been claimed; 0 where none is due
    yet."""
    moment: datetime = conn.execute(sa.select(dialects.now(conn))).scalar_one()
    return {root: max(0.0, (moment - due).total_seconds()) for root, due in first_due(conn).items()}


def first_due(conn: sa.Connection) -> dict[str, datetime]:
    """Root -> when its first pending row is due, by one look-up in the claim index for each priority; only roots that
    have pending rows."""
    soonest: dict[str, datetime] = {}
    for root in queued_roots(conn):
        for priority in PRIORITIES:
            first = (
                sa.select(images.c.not_before)
                .where(in_state(State.PENDING), images.c.root == root, images.c.priority == priority)
                .order_by(images.c.not_before, images.c.id)
                .limit(1)
            )
            if (due := conn.scalar(first)) is not None:
                soonest[root] = min(due, soonest.get(root, due))
    return soonest


def known_shards(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that are shards of this catalog."""
    given = dialects.rows_of(conn, "given", {"name": sa.Text()}, [(name,) for name in names])
    statement = sa.select(shards.c.name).join(given, given.c.name == shards.c.name)
    return set(conn.execute(statement).scalars())


def faulty_shards(conn: sa.Connection) -> dict[str, str]:
    """The shards that were found faulty, and how: path -> a Fault."""
    return dict(values.get_value(conn, FAULTY) or {})


def tell_faulty(conn: sa.Connection, news: dict[str, str | None], most: int) -> None:
    """Tell of shards that are faulty, at most `most` of them, or (None) are no more."""
    values.add_values(conn, {FAULTY: {}})
    values.lock(conn, FAULTY)
    told = {**faulty_shards(conn), **news}
    told = {path: fault for path, fault in told.items() if fault is not None}
    values.set_value(conn, FAULTY, dict(list(told.items())[:most]))
