"""Counters of images by state, in `settings`. They are changed last in a transaction and in order of name, so that
transactions wait for one another and never deadlock."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from featd.catalog.schema import settings
from featd.states import State


class StateChanges(Counter[State]):
    """How many images entered (positive) and left (negative) each state in this transaction."""

    def move(self, before: State | None, after: State, rows: int = 1) -> None:
        if before is not None:
            self[before] -= rows
        self[after] += rows


def apply(conn: sa.Connection, changes: StateChanges) -> None:
    """Add `changes` to the counters."""
    for state in sorted(changes):
        if changes[state]:
            conn.execute(
                sa.update(settings)
                .where(settings.c.name == counter_name(state))
                .values(number=settings.c.number + changes[state])
            )


def counter_name(state: State) -> str:
    return f"count.{state}"


def counts(conn: sa.Connection) -> dict[State, int]:
    """Images per state, from the counters: no row of `images` is read."""
    found = {row.name: row.number for row in conn.execute(sa.select(settings.c.name, settings.c.number))}
    return {state: found.get(counter_name(state), 0) for state in State}
