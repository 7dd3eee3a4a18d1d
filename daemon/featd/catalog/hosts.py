"""What hosts agree on: duties that one of them does for all, and what each tells of its ingest.

Both stand in `settings` and hold for a time, which `number` bounds: milliseconds on the clock of leases. A duty
is advisory: it spares work. Where two hosts do it at once for a moment, nothing is wrong afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import counters, dialects
from featd.catalog.schema import settings

ASKED = "scan_asked"
SCANNED = "ingest"
_STANDING = "ingest."


class Duty(StrEnum):
    """What one host does for all."""

    SCAN = "scan"  # scans of whole roots, and with them what is gone
    TIDY = "tidy"  # files that no row names, times that are wrong


@dataclass(frozen=True, slots=True)
class Standing:
    """What a host's ingest said last. `live`: it says it still."""

    live: bool
    said: dict[str, Any]


def take_duty(conn: sa.Connection, duty: Duty, host: str, seconds: float) -> bool:
    """Take or renew a duty for `seconds`; False while another host holds it. Needs no lease.

    A host takes what it held itself without waiting: there is one supervisor per store and host.
    """
    where = settings.c.name == _name(duty)
    conn.execute(
        dialects.insert_if_new(conn, settings, ["name"]).values(name=_name(duty), value=None, number=0)
    )
    row = conn.execute(dialects.lock_rows(conn, _kept().where(where))).one()
    if _is_live(conn, row) and json.loads(row.value)["host"] != host:
        return False
    _keep(conn, _name(duty), {"host": host}, seconds)
    return True


def leave_duty(conn: sa.Connection, duty: Duty, host: str) -> None:
    """Let another host have it at once."""
    if duty_holder(conn, duty) == host:
        _keep(conn, _name(duty), {"host": host}, 0.0)


def duty_holder(conn: sa.Connection, duty: Duty) -> str | None:
    """The host that does it now."""
    row = conn.execute(_kept().where(settings.c.name == _name(duty))).first()
    return str(json.loads(row.value)["host"]) if row is not None and _is_live(conn, row) else None


def ask_scan(conn: sa.Connection, roots: Collection[str]) -> None:
    """Have the host that scans scan these soon: events were lost here. Called after `take_duty`, which locks."""
    asked = {*(counters.get_value(conn, ASKED) or ()), *roots}
    counters.set_value(conn, ASKED, sorted(asked))


def take_asked(conn: sa.Connection) -> set[str]:
    """The roots that other hosts asked to have scanned. Called after `take_duty`, by its holder."""
    asked = set(counters.get_value(conn, ASKED) or ())
    if asked:
        counters.set_value(conn, ASKED, [])
    return asked


def publish(conn: sa.Connection, host: str, said: dict[str, Any], seconds: float) -> None:
    """Store what this host's ingest says of itself; it holds for `seconds`."""
    _keep(conn, _STANDING + host, {"said": said}, seconds)


def standings(conn: sa.Connection) -> dict[str, Standing]:
    """What each host's ingest said last."""
    rows = conn.execute(_kept().where(settings.c.name.startswith(_STANDING, autoescape=True)))
    return {
        row.name.removeprefix(_STANDING): Standing(_is_live(conn, row), json.loads(row.value)["said"])
        for row in rows.all()
    }


def note_scan(conn: sa.Connection) -> None:
    """A whole root was scanned to its end just now."""
    counters.set_value(conn, SCANNED, {"last_scan_at": clock.utcnow().isoformat()})


def ingest_of_all(conn: sa.Connection, down: str | None = None) -> dict[str, Any]:
    """What the status shows of ingest: sums over the hosts. `down`: this host's is known not to run."""
    scanned_by = duty_holder(conn, Duty.SCAN)
    told: dict[str, Any] = {
        "watching": 0,
        "last_scan_at": (counters.get_value(conn, SCANNED) or {}).get("last_scan_at"),
        "scanned_by": None if scanned_by == down else scanned_by,
        "overflows": 0,
        "rewatched": 0,
        "handler_errors": 0,
        "notes": {},
    }
    said = standings(conn)
    live = {host for host, standing in said.items() if standing.live and host != down}
    for host, standing in sorted(said.items()):
        for name in ("overflows", "rewatched", "handler_errors"):
            told[name] += standing.said[name]
        if host not in live:
            continue
        told["watching"] += standing.said["watching"]
        for root, note in standing.said["notes"].items():
            note = note if len(live) == 1 else f"{note} (on {host})"
            told["notes"][root] = "; ".join(filter(None, (told["notes"].get(root), note)))
    return told


def _name(duty: Duty) -> str:
    return f"duty.{duty}"


def _kept() -> sa.Select[Any]:
    return sa.select(settings.c.name, settings.c.value, settings.c.number)


def _keep(conn: sa.Connection, name: str, value: dict[str, Any], seconds: float) -> None:
    until = sa.cast((dialects.lease_now(conn) + seconds) * 1000, sa.BigInteger)
    text = json.dumps({**value, "boot": dialects.boot_id(conn)}, sort_keys=True)
    conn.execute(dialects.upsert(conn, settings, ["name"], {"name": name, "value": text, "number": until}))


def _is_live(conn: sa.Connection, row: sa.Row[Any]) -> bool:
    if row.value is None or json.loads(row.value)["boot"] != dialects.boot_id(conn):
        return False
    now_seconds: float = conn.execute(sa.select(dialects.lease_now(conn))).scalar_one()
    return bool(row.number > now_seconds * 1000)
