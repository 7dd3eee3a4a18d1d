"""What several hosts agree on: duties that one of them does for all, and what each reports about its ingest.

A host stands here for a seat, of which it has one, of its name, or several (processes/seats.py).
A duty saves work; correctness does not depend on it: when two hosts do it at the same time for a moment, nothing is
wrong afterwards. Duties and reports are rows of `settings` that are valid until `number`, in milliseconds on the
clock of leases.
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
"""The duty to remove files that no row names, to correct times that are wrong, and to compare shards slowly."""
FORGET_SECONDS = 24 * 3600.0
"""How long a report is kept for its counts after it has ended."""
LAST_SCAN = "last_scan"
_DUTY = "duty."
_ASKED = "asked."
_REPORT = "ingest."
_SCAN = "scan."


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The last report of a host's ingest. `live`: still valid."""

    live: bool
    report: dict[str, Any]


# Duties


def scan_of(root: str) -> str:
    """The duty to scan all of a root, and to mark what is gone there.

    It contains the root as image rows do. Both are in an index, so both have the same limit of length.
    """
    return _SCAN + root


def take_duties(
    conn: sa.Connection, duties: Collection[str], host: str, seconds: float, leave: Collection[str] = ()
) -> set[str]:
    """Take or renew `duties` for `seconds`; returns those that are this host's now. Needs no lease.

    A host takes over its own duties without waiting, because there is one supervisor per store and host.
    leave: duties of this host that another host may take at once.
    """
    names = sorted(_DUTY + duty for duty in {*duties, *leave})
    if not names:
        return set()
    statement = _kept(conn).where(settings.c.name.in_(names)).order_by(settings.c.name)
    # Mostly others have them all: then nothing is locked or written, so that nobody waits, and no COMMIT takes time.
    known = conn.execute(statement).all()
    others = [row for row in known if _is_live(conn, row) and json.loads(row.value)["host"] != host]
    if len(others) == len(names):
        return set()
    values.add_values(conn, dict.fromkeys(names))
    # All hosts lock in the same order, so that they wait for one another and never deadlock.
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
            update = sa.update(settings).where(settings.c.name.in_(sorted(_DUTY + duty for duty in some)))
            conn.execute(update.values(**_values(conn, {"host": host}, lasts_seconds)))
    return taken


def leave_duties(conn: sa.Connection, duties: Collection[str], host: str) -> None:
    """Give up these duties, so that another host can take them at once."""
    take_duties(conn, (), host, 0.0, leave=duties)


def duty_holders(conn: sa.Connection) -> dict[str, str]:
    """Each duty that is taken now -> the host that has it."""
    rows = _rows_named(conn, _DUTY).items()
    return {duty: str(json.loads(row.value)["host"]) for duty, row in rows if _is_live(conn, row)}


def ask_for(conn: sa.Connection, duties: Collection[str]) -> None:
    """Ask the hosts that have these duties to do them soon.

    Requests are counted and never withdrawn, so that a lost reply to a COMMIT cannot lose one.
    """
    names = sorted(_ASKED + duty for duty in duties)
    if names:
        values.add_values(conn, dict.fromkeys(names))
        which = settings.c.name.in_(names)
        conn.execute(
            dialects.lock_rows(conn, sa.select(settings.c.name).where(which).order_by(settings.c.name))
        )
        asked = sa.update(settings).where(which)
        conn.execute(asked.values(number=settings.c.number + 1))


def times_asked(conn: sa.Connection, duties: Collection[str]) -> dict[str, int]:
    """How often each of these duties was ever asked for; the caller compares it with the number it saw last."""
    names = [_ASKED + duty for duty in duties]
    statement = sa.select(settings.c.name, settings.c.number).where(settings.c.name.in_(names))
    found = {row.name.removeprefix(_ASKED): int(row.number) for row in conn.execute(statement)}
    return {duty: found.get(duty, 0) for duty in duties}


# Reports


def report_ingest(conn: sa.Connection, host: str, report: dict[str, Any], seconds: float) -> None:
    """Store the report of this host's ingest; it is valid for `seconds`."""
    row = {"name": _REPORT + host, **_values(conn, {"report": report}, seconds)}
    conn.execute(dialects.upsert(conn, settings, ["name"], row))


def ingest_reports(conn: sa.Connection) -> dict[str, IngestReport]:
    """The last report of each host's ingest."""
    return {
        host: IngestReport(_is_live(conn, row), json.loads(row.value)["report"])
        for host, row in _rows_named(conn, _REPORT).items()
    }


def forget_reports(conn: sa.Connection, host: str) -> None:
    """Remove the reports of other hosts that ended more than a day ago, with their counts."""
    rows = _rows_named(conn, _REPORT)
    # On SQLite a report of another boot has ended too; when is not known. PostgreSQL's clock outlives a failover.
    of_boot = _is_of_this_boot if dialects.is_sqlite(conn) else lambda _conn, _row: True
    old = [
        row.name
        for other, row in rows.items()
        if other != host and not (of_boot(conn, row) and _is_valid(row, FORGET_SECONDS))
    ]
    if old:
        conn.execute(sa.delete(settings).where(settings.c.name.in_(old)))


def note_scan(conn: sa.Connection) -> None:
    """Record that the scan of a whole root has just finished."""
    values.set_value(conn, LAST_SCAN, clock.utcnow().isoformat())


def ingest_of_all(conn: sa.Connection, down: Collection[str] = ()) -> dict[str, Any]:
    """What status shows about ingest, added up over the hosts. `down`: those whose ingest is known not to
    run."""
    told: dict[str, Any] = {
        "watching": 0,
        "last_scan_at": values.get_value(conn, LAST_SCAN),
        "scanned_by": {
            duty.removeprefix(_SCAN): host
            for duty, host in sorted(duty_holders(conn).items())
            if duty.startswith(_SCAN) and host not in down
        },
        "overflows": 0,
        "rewatched": 0,
        "handler_errors": 0,
        "ignored": {},
        "notes": {},
    }
    reports = ingest_reports(conn)
    live = {host for host, found in reports.items() if found.live and host not in down}
    for host, found in sorted(reports.items()):
        for name in ("overflows", "rewatched", "handler_errors"):
            told[name] += found.report[name]
        told["ignored"] |= found.report.get("ignored", {})
        if host not in live:
            continue
        told["watching"] += found.report["watching"]
        for root, note in found.report["notes"].items():
            note = note if len(live) == 1 else f"{note} (on {host})"
            told["notes"][root] = "; ".join(filter(None, (told["notes"].get(root), note)))
    return told


# Rows that are valid for a time


def _kept(conn: sa.Connection) -> sa.Select[Any]:
    now_ms = sa.cast(dialects.lease_now(conn) * 1000, sa.BigInteger).label("now_ms")
    return sa.select(settings.c.name, settings.c.value, settings.c.number, now_ms)


def _rows_named(conn: sa.Connection, prefix: str) -> dict[str, sa.Row[Any]]:
    """The rows whose names begin with `prefix`, by the rest of the name."""
    statement = _kept(conn).where(settings.c.name.startswith(prefix, autoescape=True))
    return {row.name.removeprefix(prefix): row for row in conn.execute(statement).all()}


def _values(conn: sa.Connection, value: dict[str, Any], seconds: float) -> dict[str, Any]:
    until_ms = sa.cast((dialects.lease_now(conn) + seconds) * 1000, sa.BigInteger)
    text = json.dumps({**value, "boot": dialects.boot_id(conn)}, sort_keys=True)
    return {"value": text, "number": until_ms}


def _is_live(conn: sa.Connection, row: sa.Row[Any]) -> bool:
    return row.value is not None and _is_of_this_boot(conn, row) and _is_valid(row)


def _is_of_this_boot(conn: sa.Connection, row: sa.Row[Any]) -> bool:
    """As `leases.is_live` compares it: rows of an earlier featd on PostgreSQL have no boot."""
    boot, its = dialects.boot_id(conn), json.loads(row.value)["boot"]
    return boot is None or its is None or its == boot


def _is_valid(row: sa.Row[Any], grace_seconds: float = 0.0) -> bool:
    """Whether its time is not over, or was not `grace_seconds` ago."""
    return bool(row.number + grace_seconds * 1000 > row.now_ms)
