"""Counters of images by state, in `settings`.

Each counter is the sum of rows. On PostgreSQL a connection adds to one of SLOTS of them, so that workers and hosts do
not wait for one another's COMMIT. Counters are changed last in a transaction, so that their rows are locked for the
COMMIT alone, and in order of name: so transactions may wait for one another and never deadlock.
"""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.schema import settings
from featd.states import State

SLOTS = 64
"""Rows of a counter on PostgreSQL, beside the one without a number. Two connections that share one only wait."""
_COUNT = "count."
_RECORDED = sa.select(settings.c.name, settings.c.number).where(
    settings.c.name.startswith(_COUNT, autoescape=True)
)


class StateChanges(Counter[State]):
    """How many images entered (positive) and left (negative) each state in this transaction."""

    def move(self, before: State | None, after: State, rows: int = 1) -> None:
        if before is not None:
            self[before] -= rows
        self[after] += rows


def apply(conn: sa.Connection, changes: StateChanges) -> None:
    """Add `changes` to the counters."""
    if rows := [(counter_name(state), change) for state, change in changes.items() if change]:
        conn.execute(_add(conn), {"changes": dialects.as_document(rows)})


@dialects.once
def _add(conn: sa.Connection) -> sa.Insert:
    changes = dialects.rows_in(
        conn,
        "changes",
        {"name": sa.Text(), "number": sa.BigInteger()},
        sa.bindparam("changes", type_=sa.Text),
    )
    slot = dialects.slot(conn, SLOTS)
    name = changes.c.name if slot is None else changes.c.name + "." + slot
    ordered = sa.select(name, changes.c.number).order_by(name)
    return dialects.add_up(conn, settings, "name", "number", ordered)


def counter_name(state: State) -> str:
    """Of the row without a number: the one that a catalog has from its beginning."""
    return f"{_COUNT}{state}"


def counts(conn: sa.Connection) -> dict[State, int]:
    """Images per state, from the counters: no row of `images` is read."""
    found: Counter[str] = Counter()
    for name, number in conn.execute(_RECORDED):
        found[name.split(".")[1]] += number
    return {state: found[state] for state in State}
