"""Counters are exact, however many rows they have, and nobody waits for them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, counters
from featd.catalog.counters import StateChanges
from featd.catalog.schema import settings
from featd.states import State


def counted(desk: Any) -> dict[State, int]:
    with connect.reading(desk.engine) as conn:
        return {state: number for state, number in counters.counts(conn).items() if number}


def test_changes_add_up(desk: Any) -> None:
    desk.find("x.jpg", "y.jpg")
    desk.do(counters.apply, StateChanges({State.DONE: 3, State.PENDING: -5, State.GONE: 0}))
    assert counted(desk) == {State.DONE: 3, State.PENDING: -3}
    desk.do(counters.apply, StateChanges({State.DONE: -3, State.PENDING: 5}))
    assert counted(desk) == {State.PENDING: 2}
    desk.do(counters.apply, StateChanges())


def test_a_catalog_of_before_goes_on(desk: Any) -> None:
    """All that an earlier featd counted is in the rows without a number."""
    row = sa.update(settings).where(settings.c.name == counters.counter_name(State.DONE))
    desk.execute(row.values(number=7))
    desk.do(counters.apply, StateChanges({State.DONE: -6}))
    assert counted(desk) == {State.DONE: 1}
    desk.do(counters.apply, StateChanges({State.DONE: -1}))


def test_nobody_waits_for_the_commit_of_others(desk: Any) -> None:
    if desk.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    with ExitStack() as stack:
        # Of four connections, at least two have slots of their own.
        slots = {}
        for _ in range(4):
            conn = stack.enter_context(desk.engine.connect().execution_options(write=True))
            conn.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            slots[conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() % counters.SLOTS] = conn
        assert len(slots) > 1
        for conn in slots.values():
            counters.apply(conn, StateChanges({State.DONE: 1, State.PENDING: -1}))
        for conn in slots.values():
            conn.rollback()
    assert counted(desk) == {}
