"""Named values in `settings`, stored as JSON."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import settings


def get_value(conn: sa.Connection, name: str) -> Any:
    """The JSON value stored under `name`, or None."""
    text = conn.scalar(sa.select(settings.c.value).where(settings.c.name == name))
    return None if text is None else json.loads(text)


def set_value(conn: sa.Connection, name: str, value: Any) -> None:
    """Store a JSON value under `name`."""
    row = {"name": name, "value": json.dumps(value, sort_keys=True), "number": 0}
    conn.execute(dialects.upsert(conn, settings, ["name"], row))
