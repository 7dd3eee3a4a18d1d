"""Named values in `settings`, stored as JSON."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import settings

_VALUE = sa.select(settings.c.value).where(settings.c.name == sa.bindparam("of_name"))


def get_value(conn: sa.Connection, name: str) -> Any:
    """The JSON value stored under `name`, or None."""
    text = conn.scalar(_VALUE, {"of_name": name})
    return None if text is None else json.loads(text)


def set_value(conn: sa.Connection, name: str, value: Any) -> None:
    """Store a JSON value under `name`."""
    conn.execute(dialects.upsert(conn, settings, ["name"], _row(name, value)))


def lock(conn: sa.Connection, name: str) -> None:
    """Hold the row of `name` until the transaction ends, so that nobody else changes it meanwhile."""
    conn.execute(dialects.lock_rows(conn, sa.select(settings.c.name).where(settings.c.name == name)))


def add_values(conn: sa.Connection, values: dict[str, Any]) -> None:
    """Store those JSON values whose names have no row yet. None: a row without a value."""
    rows = [_row(name, value) for name, value in values.items()]
    conn.execute(dialects.insert_if_new(conn, settings, ["name"]), rows)


def remove(conn: sa.Connection, name: str) -> None:
    """Delete the row of `name`."""
    conn.execute(sa.delete(settings).where(settings.c.name == name))


def _row(name: str, value: Any) -> dict[str, Any]:
    text = None if value is None else json.dumps(value, sort_keys=True)
    return {"name": name, "value": text, "number": 0}
