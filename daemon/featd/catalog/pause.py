"""Pauses: `featd pause` keeps the workers of one host, or of all, from claiming until `featd resume`.

A pause is a row of `settings`, so that it outlives every process. A claim reads it in its own transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import values
from featd.catalog.schema import leases, settings
from featd.states import Lease

_ALL = "paused"
_HOST = "paused:"
_OF_LEASE = sa.select(leases.c.host).where(leases.c.id == sa.bindparam("lease")).scalar_subquery()
_HOLDS = sa.select(settings.c.name).where(settings.c.name.in_([_ALL, sa.literal(_HOST) + _OF_LEASE]))


@dataclass(frozen=True, slots=True)
class Pause:
    """`host`: None where it holds for all hosts. `by`: who asked for it. `reason` may be empty."""

    host: str | None
    since: datetime
    by: str
    reason: str

    def __str__(self) -> str:
        whom = " on all hosts" if self.host is None else ""
        why = f": {self.reason}" if self.reason else ""
        return f"paused{whom} since {self.since:%Y-%m-%d %H:%M} UTC by {self.by}{why}"

    def ended_by(self, here: str) -> str:
        """The command that ends it, typed on the host `here`."""
        if self.host is None:
            return "`featd resume --all`"
        return "`featd resume`" if self.host == here else f"`featd resume --host {self.host}`"


def pause(conn: sa.Connection, host: str | None, by: str, reason: str) -> Pause:
    """Pause `host`, or all hosts (None). One that is paused already keeps its beginning, and its reason where none is
    given. Needs no lease."""
    name = _name(host)
    now = clock.utcnow().isoformat(timespec="seconds")
    before = values.get_value(conn, name) or {"since": now, "reason": ""}
    value = {"since": before["since"], "by": by, "reason": reason or before["reason"]}
    values.set_value(conn, name, value)
    return _pause(host, value)


def resume(conn: sa.Connection, host: str | None) -> list[Pause]:
    """End the pause of `host`; None: every pause, of whichever host. Returns those that have ended."""
    ended = [one for one in pauses(conn) if host is None or one.host == host]
    for one in ended:
        values.remove(conn, _name(one.host))
    return ended


def pauses(conn: sa.Connection) -> list[Pause]:
    """All pauses: that of all hosts first, then by host."""
    rows = conn.execute(
        sa.select(settings.c.name, settings.c.value)
        .where((settings.c.name == _ALL) | settings.c.name.startswith(_HOST, autoescape=True))
        .order_by(settings.c.name)
    )
    return [_pause(name[len(_HOST) :] or None, json.loads(value)) for name, value in rows]


def of_host(conn: sa.Connection, host: str) -> Pause | None:
    """The pause that keeps the workers of this host from claiming."""
    return next((one for one in pauses(conn) if one.host in (None, host)), None)


def holds(conn: sa.Connection, lease: Lease) -> bool:
    """Whether the host of this lease is paused: one look-up of two keys, in the transaction of a claim."""
    return conn.execute(_HOLDS, {"lease": lease.id}).first() is not None


def known_hosts(conn: sa.Connection) -> list[str]:
    """The hosts that have had a worker, in order of name."""
    return sorted(set(conn.scalars(sa.select(leases.c.host).distinct())))


def _name(host: str | None) -> str:
    return _ALL if host is None else _HOST + host


def _pause(host: str | None, value: dict[str, Any]) -> Pause:
    return Pause(host, datetime.fromisoformat(value["since"]), value["by"], value["reason"])
