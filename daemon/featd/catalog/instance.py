"""The identity of a catalog: its instance id and the one fingerprint of its vectors."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from featd.catalog import counters, values
from featd.errors import FingerprintError
from featd.states import State


def create_instance(conn: sa.Connection) -> str:
    """Give a new catalog its instance id and its counters. A catalog that has them stays as it is."""
    rows = dict.fromkeys(map(counters.counter_name, State))
    values.add_values(conn, {**rows, "instance": str(uuid.uuid4())})
    return instance_id(conn)


def instance_id(conn: sa.Connection) -> str:
    return str(values.get_value(conn, "instance"))


def fingerprint(conn: sa.Connection) -> str | None:
    """The fingerprint of this catalog's vectors; None before the first."""
    value = values.get_value(conn, "fingerprint")
    return None if value is None else str(value)


def spec(conn: sa.Connection) -> dict[str, Any] | None:
    """What the fingerprint was computed from; None before the first vector."""
    value = values.get_value(conn, "spec")
    return None if value is None else dict(value)


def golden(conn: sa.Connection) -> dict[str, Any] | None:
    """The golden vectors that were stored with the first done row."""
    value = values.get_value(conn, "golden")
    return None if value is None else dict(value)


def fix_fingerprint(conn: sa.Connection, mine: str, spec: dict[str, Any], golden: dict[str, Any]) -> None:
    """Compare the fingerprint of this transaction's vectors with the catalog's; the first vectors set it."""
    if fingerprint(conn) is None:
        # Two workers may bring the first vectors at the same time: the second waits here and then reads the first's.
        values.add_values(conn, {"fingerprint": mine, "golden": golden, "spec": spec})
    check_fingerprint(fingerprint(conn), mine)


def check_fingerprint(held: str | None, mine: str, differences: str = "") -> None:
    """FingerprintError where the catalog holds vectors of another fingerprint than `mine`."""
    if held is not None and held != mine:
        raise FingerprintError(
            f"this catalog holds vectors of fingerprint {held[:12]}; the configuration would make {mine[:12]}"
            + (f" ({differences})" if differences else "")
            + ". Put the old values back, or start a new instance beside this one: `featd init DIR`"
        )
