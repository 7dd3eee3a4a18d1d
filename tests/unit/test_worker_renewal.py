"""The renewal's thread: it keeps the lease, and the worker never outlives it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, leases, schema
from featd.errors import LeaseLostError
from featd.worker.renewal import Renewal
from filled import Filled
from running import wait_for

LEASE_SECONDS = 0.6


@pytest.fixture
def make(filled: Filled) -> Iterator[Callable[..., Renewal]]:
    made: list[Renewal] = []

    def build(shares: Callable[[], dict[str, Any]] = dict) -> Renewal:
        made.append(Renewal(filled.catalog, filled.lease, LEASE_SECONDS, shares))
        made[-1].start()
        return made[-1]

    yield build
    for renewal in made:
        renewal.stop()


def lease(filled: Filled) -> sa.Row[Any]:
    with connect.reading(filled.catalog) as conn:
        return conn.execute(sa.select(schema.leases)).one()


def test_the_lease_is_extended_and_tells_how_the_worker_fares(
    filled: Filled, make: Callable[..., Renewal]
) -> None:
    before = lease(filled).expires_at
    make(lambda: {"state": "working", "images_per_second": 3.5})
    wait_for(lambda: lease(filled).shares, 20, "the first renewal")
    assert lease(filled).shares == {"state": "working", "images_per_second": 3.5}
    first = lease(filled).expires_at
    assert first < before  # it was opened for a minute
    wait_for(lambda: lease(filled).expires_at > first, 20, "the next renewal")


def test_a_lease_that_others_ended_is_lost(filled: Filled, make: Callable[..., Renewal]) -> None:
    renewal = make()
    filled.end_lease()
    renewal.join(20)
    assert isinstance(renewal.failure, LeaseLostError)


def test_an_error_that_nobody_expected_is_not_lost(filled: Filled, make: Callable[..., Renewal]) -> None:
    def shares() -> dict[str, Any]:
        raise RuntimeError("a bug")

    renewal = make(shares)
    wait_for(lambda: renewal.failure, 20, "the failure")
    assert str(renewal.failure) == "a bug"


def test_a_worker_that_cannot_renew_leaves_before_its_lease_ends(filled: Filled) -> None:
    script = f"""
import threading
from featd import logs
from featd.catalog import connect
from featd.errors import CatalogUnavailableError
from featd.states import Lease
from featd.worker.renewal import Renewal

def refuse(*_):
    raise CatalogUnavailableError("out of reach")

logs.setup()
catalog = connect.open_catalog({filled.settings.catalog.url!r})
lease = Lease({filled.lease.id}, {filled.lease.token!r})
renewal = Renewal(catalog, lease, 3.0, dict)
renewal.step()
connect.transact = refuse
renewal.start()
threading.Event().wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    with connect.reading(filled.catalog) as conn:
        expired = leases.expired_leases(conn)
    assert expired == [], "it left after its lease had ended"
    assert done.returncode == 1, done.stderr
    assert "renewal_failed" in done.stderr
    assert "lease_expiring" in done.stderr
