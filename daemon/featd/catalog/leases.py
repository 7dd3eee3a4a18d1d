"""Leases: a worker's right to the rows it claimed, from its start to its death."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from featd.catalog import counters, dialects, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import attempts, images, in_state, leases
from featd.errors import LeaseLostError
from featd.states import Kind, Lease, RetryPolicy, State

COMPACTION = "compaction"
"""The device of a lease that is no worker's: compaction makes shards under it."""
ADOPTION = "adoption"
"""The same, of `featd adopt`: it claims images and settles them, with vectors that were made before."""
OF_NO_WORKER = (COMPACTION, ADOPTION)


@dataclass(frozen=True, slots=True)
class OpenLease:
    """A lease that has not ended, as the janitor sees it."""

    lease: Lease
    host: str
    pid: int
    device: str
    seat: str | None


@dataclass(frozen=True, slots=True)
class InHand:
    """The images that a dead worker had in its net, and why it died.

    `kind` is CRASH (its own signal, hanging, out of memory) or KILLED (a SIGKILL nobody explained, or the
    death of everything). With one image in hand the image is charged; with several all become suspects.
    """

    images: tuple[int, ...]
    kind: Kind
    message: str


def open_lease(
    conn: sa.Connection,
    *,
    host: str,
    pid: int,
    device: str,
    engine: str,
    lease_seconds: float,
    seat: str | None = None,
) -> Lease:
    """Open a lease. A worker calls this once it is able to work. `host`: the name of its seat; `seat`: the key of that,
    `<id>:<run>`; None where it belongs to a command."""
    token = secrets.token_hex(8)
    row: dict[str, Any] = {
        "token": token,
        "host": host,
        "seat": seat,
        "boot_id": dialects.boot_id(conn),
        "pid": pid,
        "device": device,
        "engine": engine,
        "started_at": dialects.now(conn),
        "expires_at": dialects.lease_now(conn) + lease_seconds,
        "done": 0,
        "failed": 0,
        "settles": 0,
        "shares": {},
    }
    lease_id = conn.execute(sa.insert(leases).values(**row).returning(leases.c.id)).scalar_one()
    return Lease(lease_id, token)


def hold(conn: sa.Connection, lease: Lease) -> None:
    """Lock the lease row; LeaseLostError unless it is mine, has not ended and has not expired.

    This comes first in every transaction of a worker: nobody can end the lease until the transaction is over.
    """
    if conn.execute(_hold(conn), {"lease": lease.id, "of_token": lease.token}).first() is None:
        raise LeaseLostError(f"lease {lease.id} has ended or expired: its rows belong to others now")


@dialects.once
def _hold(conn: sa.Connection) -> sa.Select[Any]:
    mine = (leases.c.id == sa.bindparam("lease"), leases.c.token == sa.bindparam("of_token"))
    return dialects.lock_rows(conn, sa.select(leases.c.id).where(is_live(conn), *mine))


def renew(conn: sa.Connection, lease: Lease, lease_seconds: float, shares: dict[str, Any]) -> None:
    """Extend the lease to `lease_seconds` from now. This updates one row, however many images are claimed."""
    hold(conn, lease)
    conn.execute(
        sa.update(leases)
        .where(leases.c.id == lease.id)
        .values(expires_at=dialects.lease_now(conn) + lease_seconds, shares=shares)
    )


def any_live(conn: sa.Connection) -> bool:
    """Whether any worker's lease is live."""
    return conn.execute(sa.select(leases.c.id).where(is_live(conn)).limit(1)).first() is not None


def live_hosts(conn: sa.Connection) -> set[str]:
    """The hosts on which workers have live leases."""
    of_worker = leases.c.device.not_in(OF_NO_WORKER)
    return set(conn.scalars(sa.select(leases.c.host).where(is_live(conn), of_worker).distinct()))


def all_open(conn: sa.Connection) -> list[Lease]:
    """All leases that have not ended."""
    return [one.lease for one in _read_open(conn, sa.true())]


def open_leases(conn: sa.Connection, host: str, seat: str | None = None) -> list[OpenLease]:
    """The leases of a seat that have not ended, live or expired: those that carry its id, in whatever run of it; and
    those of its name that carry none, which are of commands or of an earlier version of featd."""
    mine = (leases.c.host == host) & leases.c.seat.is_(None)
    return _read_open(conn, mine if seat is None else mine | _is_of(seat))


def live_elsewhere(conn: sa.Connection, host: str, seat: str) -> float | None:
    """For how many seconds another seat of the name `host` has a live lease; None where none has."""
    left = sa.func.max(leases.c.expires_at - dialects.lease_now(conn))
    other = (leases.c.host == host) & leases.c.seat.is_not(None) & sa.not_(_is_of(seat))
    found = conn.scalar(sa.select(left).where(is_live(conn), other))
    return None if found is None else float(found)


def _is_of(seat: str) -> sa.ColumnElement[bool]:
    """Of a row of `leases`: it carries the id of this key."""
    return leases.c.seat.startswith(f"{seat.partition(':')[0]}:", autoescape=True)


def expired_leases(conn: sa.Connection) -> list[OpenLease]:
    """The expired leases of all hosts that nobody has ended yet."""
    return _read_open(conn, sa.not_(is_live(conn)))


def end_lease(
    conn: sa.Connection,
    lease: Lease,
    reason: str,
    policy: RetryPolicy,
    in_hand: InHand | None = None,
) -> int | None:
    """End a lease and make its claimed rows pending again; returns how many, or None where it had already ended.

    Called by the worker as its last step, or by the janitor for a worker that died or stopped renewing.
    `in_hand` is counted against its images in the same transaction, so that it is counted once.
    """
    locked = conn.execute(
        dialects.lock_rows(conn, sa.select(leases.c.id).where(leases.c.ended_at.is_(None), *_mine(lease)))
    ).first()
    if locked is None:
        return None
    changes = StateChanges()
    if in_hand is not None and in_hand.images:
        verdicts.charge_deaths(conn, lease.id, in_hand.images, in_hand.kind, in_hand.message, policy, changes)
    freed = free_rows(conn, lease.id, in_state(State.CLAIMED))
    changes.move(State.CLAIMED, State.PENDING, freed)
    conn.execute(
        sa.update(leases)
        .where(leases.c.id == lease.id)
        .values(ended_at=dialects.now(conn), end_reason=verdicts.kept(reason))
    )
    counters.apply(conn, changes)
    return freed


def forget_lease(conn: sa.Connection, lease: Lease) -> None:
    """Delete a lease that has claimed nothing: compaction opens one every minute."""
    conn.execute(sa.delete(leases).where(*_mine(lease)))


def free_rows(conn: sa.Connection, lease_id: int, *which: sa.ColumnElement[bool]) -> int:
    """Make the rows of a lease pending that match `which`; returns how many. The caller holds the lease.

    Ingest may have raised a row's version while it was claimed; budgets spent on the earlier version are cleared.
    """
    mine = (images.c.lease_id == lease_id, *which)
    dialects.lock_images(conn, *mine)
    spent = (images.c.errors > 0) | (images.c.crashes > 0) | (images.c.kills > 0)
    at_this_version = (
        sa.exists().where(attempts.c.image_id == images.c.id, attempts.c.version == images.c.version)
    ).correlate(images)
    void = sa.case((spent, sa.not_(at_this_version)), else_=sa.false())
    budgets = {
        name: sa.case((void, sa.literal(cleared)), else_=images.c[name])
        for name, cleared in {**verdicts.UNSPENT, "suspect": False}.items()
    }
    values = {"state": State.PENDING, "lease_id": None, "updated_at": dialects.now(conn), **budgets}
    return dialects.changed(conn, sa.update(images).where(*mine).values(**values))


def is_over(conn: sa.Connection, lease: Lease) -> bool:
    """Whether the lease can settle nothing any more: it has ended, or the catalog knows no such lease."""
    row = conn.execute(sa.select(leases.c.ended_at).where(*_mine(lease))).first()
    return row is None or row.ended_at is not None


def may_settle(conn: sa.Connection, lease: Lease) -> bool:
    """Whether its worker may still settle: the lease has neither ended nor expired."""
    return conn.execute(sa.select(leases.c.id).where(*_mine(lease), is_live(conn))).first() is not None


def _mine(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    return (leases.c.id == lease.id, leases.c.token == lease.token)


def is_live(conn: sa.Connection) -> sa.ColumnElement[bool]:
    """Of a row of `leases`: it has neither ended nor expired."""
    live = leases.c.ended_at.is_(None) & (leases.c.expires_at > dialects.lease_now(conn))
    boot = dialects.this_boot(conn)
    return live if boot is None else live & of_boot(boot)


def of_boot(boot: str | sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Of a row of `leases`: it carries this boot id, or none, as one that an earlier featd has opened on PostgreSQL."""
    return sa.func.coalesce(leases.c.boot_id, boot) == boot


def _read_open(conn: sa.Connection, which: sa.ColumnElement[bool]) -> list[OpenLease]:
    columns = leases.c["id", "token", "host", "pid", "device", "seat"]
    rows = conn.execute(sa.select(*columns).where(leases.c.ended_at.is_(None), which).order_by(leases.c.id))
    return [OpenLease(Lease(row.id, row.token), row.host, row.pid, row.device, row.seat) for row in rows]
