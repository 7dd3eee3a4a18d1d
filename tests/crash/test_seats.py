"""64 seats on one PostgreSQL: no deadlock, no error in the server's log, exact counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

import seats
from featd.catalog import connect, feed, leases, migrate, verify
from postgres import PostgreSQL

SEATS = 64
PROCESSES = 4
SECONDS = 8.0
HOUR_TURNS = 720


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """Of its own: its log is looked at."""
    server = PostgreSQL()
    yield server
    server.close()


def live(server: PostgreSQL, turns: int, seconds: float) -> int:
    """How many turns the seats had together."""
    url = server.url(server.create())
    catalog = connect.open_catalog(url)
    migrate.upgrade(catalog)
    names = [f"seat{at}" for at in range(SEATS)]
    processes = [
        subprocess.Popen(
            [sys.executable, seats.__file__, url, str(turns), str(seconds), *names[at::PROCESSES]],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        for at in range(PROCESSES)
    ]
    found = [json.loads(process.communicate(timeout=seconds + 200)[0]) for process in processes]
    assert [one for _, failures in found for one in failures] == []
    try:
        while connect.transact(catalog, feed.number):
            pass
        with connect.reading(catalog) as conn:
            assert leases.all_open(conn) == []
            assert not verify.recount(conn)
            look = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            assert conn.scalar(look) == 0
    finally:
        catalog.dispose()
    wrong = [line for line in server.log().splitlines() if "ERROR" in line or "FATAL" in line]
    assert wrong == []
    return sum(sum(done) for done, _ in found)


@pytest.mark.timeout(300)
def test_64_seats_neither_deadlock_nor_fail(server: PostgreSQL) -> None:
    assert live(server, HOUR_TURNS, SECONDS) >= SEATS


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_an_hour_of_64_seats(server: PostgreSQL) -> None:
    assert live(server, HOUR_TURNS, 2.9 * 3600) == SEATS * HOUR_TURNS
