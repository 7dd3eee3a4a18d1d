"""Claiming ahead: what arrives does not wait behind the backlog that is claimed already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from featd.catalog import connect
from featd.catalog.schema import images
from featd.processes.link import ChildLink
from featd.states import PRIORITY_ARRIVAL, State
from featd.worker.claims import Claims, Held
from filled import Filled
from running import wait_for

AHEAD = 32


@pytest.fixture
def claims(filled: Filled, link: ChildLink, monkeypatch: pytest.MonkeyPatch) -> Iterator[Claims]:
    """At work on a backlog of 500 images; nothing happens before it is woken."""
    monkeypatch.setattr("featd.worker.claims.POLL_SECONDS", 60.0)
    filled.enqueue([f"{n:03}.jpg" for n in range(500)])
    made = Claims(
        filled.catalog,
        filled.lease,
        link,
        {str(filled.roots[0]): str(filled.roots[0])},
        Held(),
        ahead=AHEAD,
        lease_seconds=60.0,
    )
    made.start()
    wait_for(lambda: claimed(filled) == AHEAD, 20, "a claim")
    yield made
    made.stop()


def claimed(filled: Filled) -> int:
    statement = sa.select(sa.func.count()).where(images.c.state == State.CLAIMED)
    with connect.reading(filled.catalog) as conn:
        return int(conn.execute(statement).scalar_one())


def test_an_arrival_stands_ahead_of_what_is_claimed(filled: Filled, claims: Claims, link: ChildLink) -> None:
    filled.enqueue(["new 1.jpg", "new 2.jpg"], priority=PRIORITY_ARRIVAL)
    link.wake_self()  # as ingest does
    wait_for(lambda: claimed(filled) == AHEAD + 2, 20, "the arrivals")
    assert [image.path for image in (claims.take(), claims.take(), claims.take()) if image] == [
        "new 1.jpg", "new 2.jpg", "000.jpg",
    ]  # fmt: skip


def test_arrivals_keep_their_order(filled: Filled, claims: Claims, link: ChildLink) -> None:
    for number, name in enumerate(("first.jpg", "second.jpg", "third.jpg"), 1):
        filled.enqueue([name], priority=PRIORITY_ARRIVAL)
        link.wake_self()
        wait_for(lambda number=number: claimed(filled) == AHEAD + number, 20, "the arrival")
    taken = [claims.take() for _ in range(3)]
    assert [image.path for image in taken if image] == ["first.jpg", "second.jpg", "third.jpg"]


def test_a_flood_of_arrivals_is_claimed_as_it_is_eaten(
    filled: Filled, claims: Claims, link: ChildLink
) -> None:
    filled.enqueue([f"new {n:03}.jpg" for n in range(200)], priority=PRIORITY_ARRIVAL)
    for _ in range(5):
        link.wake_self()
    wait_for(lambda: claimed(filled) == AHEAD + AHEAD // 2, 20, "some arrivals")
    taken = []
    for _ in range(700):
        image = wait_for(claims.take, 20, "the next image")
        taken.append(image.path)
    assert len(set(taken)) == 700
    assert claimed(filled) == 700


@pytest.mark.parametrize(("seconds", "grown"), [(0.0, 1), (60.0, 2)])
def test_what_was_eaten_is_claimed_anew_at_once_and_more_where_it_was_eaten_soon(
    filled: Filled, claims: Claims, monkeypatch: pytest.MonkeyPatch, seconds: float, grown: int
) -> None:
    monkeypatch.setattr("featd.worker.claims.CLAIM_SECONDS", seconds)
    before = claimed(filled)
    for _ in range(AHEAD // 2):
        assert claims.take() is not None
    eaten = AHEAD // 2
    wait_for(lambda: claimed(filled) == before + eaten + (grown - 1) * AHEAD, 20, "the next claim")


def test_claims_grow_until_they_last_and_shrink_again(filled: Filled, link: ChildLink) -> None:
    filled.enqueue([f"{n:04}.jpg" for n in range(4000)])
    roots = {str(filled.roots[0]): str(filled.roots[0])}
    made = Claims(filled.catalog, filled.lease, link, roots, Held(), ahead=AHEAD, lease_seconds=60.0)
    now = 0.0

    def claims_at(rate: int) -> int:
        """Images of the next claim, of a net that takes `rate` a second."""
        nonlocal now
        while (count := made.step(now)) == 0:
            now += 1 / rate
            assert made.take() is not None
        return count

    assert [claims_at(400) for _ in range(8)][-3:] == [256, 256, 256]  # lasts 0.64 s
    assert [claims_at(10) for _ in range(8)][-3:] == [AHEAD // 2] * 3
