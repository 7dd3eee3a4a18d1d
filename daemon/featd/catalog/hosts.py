"""What hosts agree on: duties that one of them does for all, and what each reports of its ingest.

A duty is the advisory lease of the design: it spares work. Where two hosts do it at once for a moment, nothing is
wrong afterwards. Duties and reports stand in `settings` and hold for a time, which `number` bounds: milliseconds on
the clock of leases.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import dialects, values
from featd.catalog.schema import settings

TIDY = "tidy"
"""The duty of files that no row names, and of times that are wrong."""
FORGET_SECONDS = 24 * 3600.0
"""So long after its end a report is kept for its counts."""
LAST_SCAN = "last_scan"
_DUTY = "duty."
_ASKED = "asked."
_REPORT = "ingest."
_SCAN = "scan."


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What a host's ingest reported last. `live`: it holds still."""

    live: bool
    report: dict[str, Any]


# Duties


def scan_of(root: str) -> str:
    """The duty of scans of all of a root, and with them of what is gone there.

    The root stands in it as it stands beside each image, in an index too: what is too long here is so there.
    """
    return _SCAN + root


def take_duties(
    conn: sa.Connection, duties: Collection[str], host: str, seconds: float, leave: Collection[str] = ()
) -> set[str]:
    """Take or renew `duties` for `seconds`; returns those that are this host's now. Needs no lease.

    A host takes what it held itself without waiting: there is one supervisor per store and host.
    leave: what another host may have at once, where this one held it.
    """
    names = sorted(_DUTY + duty for duty in {*duties, *leave})
    if not names:
        return set()
    new = [{"name": name, "value": None, "number": 0} for name in names]
    conn.execute(dialects.insert_if_new(conn, settings, ["name"]), new)
    # One order for all hosts: they wait for one another and never deadlock.
    statement = _kept(conn).where(settings.c.name.in_(names)).order_by(settings.c.name)
    free, mine = set(), set()
    for row in conn.execute(dialects.lock_rows(conn, statement)).all():
        duty = row.name.removeprefix(_DUTY)
        if not _is_live(conn, row):
            free.add(duty)
        elif json.loads(row.value)["host"] == host:
            mine.add(duty)
    taken = (free | mine) & set(duties)
    for some, lasts_seconds in ((taken, seconds), (mine - taken, 0.0)):
        if some:
            named = settings.c.name.in_(sorted(_DUTY + duty for duty in some))
            values = _values(conn, {"host": host}, lasts_seconds)
            conn.execute(sa.update(settings).where(named).values(**values))
    return taken


def leave_duties(conn: sa.Connection, duties: Collection[str], host: str) -> None:
    """Let another host have them at once."""
    take_duties(conn, (), host, 0.0, leave=duties)


def duty_holders(conn: sa.Connection) -> dict[str, str]:
    """Each duty that somebody does now -> the host that does it."""
    rows = conn.execute(_kept(conn).where(settings.c.name.startswith(_DUTY, autoescape=True))).all()
    return {
        row.name.removeprefix(_DUTY): str(json.loads(row.value)["host"])
        for row in rows
        if _is_live(conn, row)
    }


def ask_for(conn: sa.Connection, duties: Collection[str]) -> None:
    """Have whoever does these duties do them soon. Called after `take_duties`, which locks.

    Asks are counted and never taken back: no lost answer to a COMMIT can lose one.
    """
    names = sorted(_ASKED + duty for duty in duties)
    if names:
        new = [{"name": name, "value": None, "number": 0} for name in names]
        conn.execute(dialects.insert_if_new(conn, settings, ["name"]), new)
        asked = sa.update(settings).where(settings.c.name.in_(names))
        conn.execute(asked.values(number=settings.c.number + 1))


def times_asked(conn: sa.Connection, duties: Collection[str]) -> dict[str, int]:
    """How often each of these duties was asked for, ever: to be compared with what was seen last."""
    names = [_ASKED + duty for duty in duties]
    statement = sa.select(settings.c.name, settings.c.number).where(settings.c.name.in_(names))
    found = {row.name.removeprefix(_ASKED): int(row.number) for row in conn.execute(statement)}
    return {duty: found.get(duty, 0) for duty in duties}


# Reports


def report_ingest(conn: sa.Connection, host: str, report: dict[str, Any], seconds: float) -> None:
    """Store what this host's ingest reports of itself; it holds for `seconds`."""
    row = {"name": _REPORT + host, **_values(conn, {"report": report}, seconds)}
    conn.execute(dialects.upsert(conn, settings, ["name"], row))


def ingest_reports(conn: sa.Connection) -> dict[str, IngestReport]:
    """What each host's ingest reported last."""
    rows = conn.execute(_kept(conn).where(settings.c.name.startswith(_REPORT, autoescape=True))).all()
    return {
        row.name.removeprefix(_REPORT): IngestReport(_is_live(conn, row), json.loads(row.value)["report"])
        for row in rows
    }


def forget_reports(conn: sa.Connection, host: str) -> None:
    """Remove the reports of hosts, besides `host`, that have been away for more than a day, with their counts."""
    rows = conn.execute(_kept(conn).where(settings.c.name.startswith(_REPORT, autoescape=True))).all()
    # When a report of another boot ended cannot be told, but that it did.
    old = [row.name for row in rows if not _is_live(conn, row, FORGET_SECONDS) and row.name != _REPORT + host]
    if old:
        conn.execute(sa.delete(settings).where(settings.c.name.in_(old)))


def note_scan(conn: sa.Connection) -> None:
    """A whole root was scanned to its end just now."""
    values.set_value(conn, LAST_SCAN, clock.utcnow().isoformat())


def ingest_of_all(conn: sa.Connection, down: str | None = None) -> dict[str, Any]:
    """What the status shows of ingest: sums over the hosts. `down`: this host's is known not to run."""
    told: dict[str, Any] = {
        "watching": 0,
        "last_scan_at": values.get_value(conn, LAST_SCAN),
        "scanned_by": {
            duty.removeprefix(_SCAN): host
            for duty, host in sorted(duty_holders(conn).items())
            if duty.startswith(_SCAN) and host != down
        },
        "overflows": 0,
        "rewatched": 0,
        "handler_errors": 0,
        "notes": {},
    }
    reports = ingest_reports(conn)
    live = {host for host, found in reports.items() if found.live and host != down}
    for host, found in sorted(reports.items()):
        for name in ("overflows", "rewatched", "handler_errors"):
            told[name] += found.report[name]
        if host not in live:
            continue
        told["watching"] += found.report["watching"]
        for root, note in found.report["notes"].items():
            note = note if len(live) == 1 else f"{note} (on {host})"
            told["notes"][root] = "; ".join(filter(None, (told["notes"].get(root), note)))
    return told


# What holds for a time


def _kept(conn: sa.Connection) -> sa.Select[Any]:
    now_ms = sa.cast(dialects.lease_now(conn) * 1000, sa.BigInteger).label("now_ms")
    return sa.select(settings.c.name, settings.c.value, settings.c.number, now_ms)


def _values(conn: sa.Connection, value: dict[str, Any], seconds: float) -> dict[str, Any]:
    until_ms = sa.cast((dialects.lease_now(conn) + seconds) * 1000, sa.BigInteger)
    text = json.dumps({**value, "boot": dialects.boot_id(conn)}, sort_keys=True)
    return {"value": text, "number": until_ms}


def _is_live(conn: sa.Connection, row: sa.Row[Any], grace_seconds: float = 0.0) -> bool:
    """Whether it holds, or held `grace_seconds` ago."""
    if row.value is None or json.loads(row.value)["boot"] != dialects.boot_id(conn):
        return False
    return bool(row.number + grace_seconds * 1000 > row.now_ms)
