"""The end of a lease: its rows are free at once, and what its worker died of is counted once."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import counters, settle
from featd.catalog.counters import StateChanges
from featd.catalog.leases import InHand
from featd.catalog.schema import images
from featd.catalog.schema import leases as lease_table
from featd.catalog.settle import Settlement
from featd.errors import LeaseLostError
from featd.states import MAX_KILLS, Kind, Lease, State


def _die(desk: Any, kind: Kind, *, paths: tuple[str, ...] = ("x.jpg",), claim: int = 100) -> Lease:
    """A worker claims, dies with `paths` in hand, and is rescued."""
    lease = desk.lease()
    desk.claim(lease, claim)
    in_hand = InHand(tuple(desk.id(path) for path in paths), kind, "signal 6; last words")
    assert desk.end(lease, in_hand) is True
    return lease


def test_the_rows_of_an_ended_lease_are_pending_at_once(desk: Any) -> None:
    desk.find("x.jpg", "y.jpg")
    lease, other = desk.lease(), desk.lease()
    desk.claim(lease, 1)
    desk.claim(other, 1)
    before = desk.row("x.jpg")
    assert desk.end(lease, reason="killed by signal 9") is True
    row = desk.row("x.jpg")
    assert (row.state, row.lease_id, row.errors, row.crashes, row.suspect) == ("pending", None, 0, 0, False)
    assert row.not_before == before.not_before
    assert desk.state("y.jpg") is State.CLAIMED
    ended = desk.rows(lease_table, lease_table.c.id == lease.id)[0]
    assert ended.end_reason == "killed by signal 9"
    assert ended.ended_at is not None


def test_a_lease_ends_once(desk: Any) -> None:
    """The janitor that died after the commit and the one after it: counted once."""
    desk.find("x.jpg")
    lease = desk.lease()
    desk.claim(lease)
    in_hand = InHand((desk.id("x.jpg"),), Kind.CRASH, "signal 6")
    assert [desk.end(lease, in_hand) for _ in range(3)] == [True, False, False]
    assert desk.row("x.jpg").crashes == 1


def test_only_the_right_token_ends_a_lease(desk: Any) -> None:
    lease = desk.lease()
    assert desk.end(Lease(lease.id, "foreign")) is False
    desk.claim(lease)


def test_an_ended_lease_settles_no_more(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    desk.end(lease)
    desk.claim(desk.lease())
    before = desk.row("x.jpg")
    with pytest.raises(LeaseLostError):
        desk.settle(lease, claimed)
    assert desk.row("x.jpg") == before


def test_a_crash_alone_is_charged_and_fails_after_max_crashes(desk: Any) -> None:
    desk.find("x.jpg")
    _die(desk, Kind.CRASH)
    row = desk.row("x.jpg")
    assert (row.state, row.crashes, row.errors, row.suspect) == ("pending", 1, 0, True)
    lease = desk.lease()
    assert desk.claim(lease)[0].suspect is True, "so that it runs alone, and at once"
    desk.end(lease)
    _die(desk, Kind.CRASH)
    row = desk.row("x.jpg")
    assert (row.state, row.crashes, row.error_kind) == ("failed", 2, "crash")
    assert "last words" in row.error
    assert desk.attempts("x.jpg") == [("crash", 1), ("crash", 1)]


@pytest.mark.parametrize("kind", [Kind.CRASH, Kind.KILLED])
def test_several_in_hand_are_suspects_and_nothing_else(desk: Any, kind: Kind) -> None:
    desk.find("x.jpg", "y.jpg", "z.jpg")
    for _ in range(MAX_KILLS + 1):
        _die(desk, kind, paths=("x.jpg", "y.jpg"))
    for path, suspect in (("x.jpg", True), ("y.jpg", True), ("z.jpg", False)):
        row = desk.row(path)
        assert (row.state, row.crashes, row.kills, row.errors, row.suspect) == ("pending", 0, 0, 0, suspect)
        assert desk.attempts(path) == []


def test_killed_four_times_alone_fails_as_a_crash(desk: Any) -> None:
    desk.find("x.jpg")
    for _ in range(MAX_KILLS - 1):
        _die(desk, Kind.KILLED)
        row = desk.row("x.jpg")
        assert (row.state, row.crashes, row.suspect, row.error_kind) == ("pending", 0, True, "killed")
    _die(desk, Kind.KILLED)
    row = desk.row("x.jpg")
    assert (row.state, row.error_kind) == ("failed", "crash")
    assert "killed 4 times" in row.error
    assert [kind for kind, _ in desk.attempts("x.jpg")] == ["killed"] * 4 + ["crash"]


def test_a_crash_between_does_not_forgive_kills(desk: Any) -> None:
    desk.find("x.jpg")
    for kind in (Kind.KILLED, Kind.KILLED, Kind.CRASH, Kind.KILLED):
        _die(desk, kind)
    assert desk.state("x.jpg") is State.PENDING
    _die(desk, Kind.KILLED)
    assert desk.state("x.jpg") is State.FAILED


def test_kills_are_counted_at_one_version(desk: Any) -> None:
    desk.find("x.jpg")
    for size in range(2, 8):
        _die(desk, Kind.KILLED)
        desk.find("x.jpg", size=size)
    assert desk.state("x.jpg") is State.PENDING
    assert desk.row("x.jpg").suspect is False, "a new version is no suspect"


def test_done_forgives(desk: Any) -> None:
    desk.find("x.jpg")
    for _ in range(3):
        _die(desk, Kind.KILLED)
    lease = desk.lease()
    desk.settle(lease, desk.claim(lease))
    desk.execute(sa.update(images).values(state="pending"))  # its shard was found bad
    desk.do(counters.apply, StateChanges({State.DONE: -1, State.PENDING: 1}))
    _die(desk, Kind.KILLED)
    assert desk.state("x.jpg") is State.PENDING


def test_what_is_in_hand_but_not_mine_is_not_charged(desk: Any) -> None:
    """The hands file is older than the settle that freed the row, or names what another holds now."""
    desk.find("x.jpg")
    lease, other = desk.lease(), desk.lease()
    desk.claim(other)
    desk.end(lease, InHand((desk.id("x.jpg"),), Kind.CRASH, "signal 6"))
    row = desk.row("x.jpg")
    assert (row.state, row.crashes, row.lease_id) == ("claimed", 0, other.id)


@pytest.mark.parametrize("spent", ["errors", "crashes"])
def test_a_version_raised_under_the_dead_worker_starts_afresh(desk: Any, spent: str) -> None:
    desk.find("x.jpg")
    if spent == "crashes":
        _die(desk, Kind.CRASH)
    else:
        lease = desk.lease()
        desk.fail(lease, desk.claim(lease)[0], Kind.READ_IO)
        desk.make_due("x.jpg")
    assert getattr(desk.row("x.jpg"), spent) == 1
    lease = desk.lease()
    desk.claim(lease)
    desk.find("x.jpg", size=2)
    desk.end(lease)
    row = desk.row("x.jpg")
    assert (row.version, row.errors, row.crashes, row.suspect) == (2, 0, 0, False)


def test_ending_with_a_settle_under_way_is_decided_by_the_lease_row(desk: Any) -> None:
    """Whoever locks the lease row first wins as a whole."""
    desk.find("x.jpg")
    lease = desk.lease()
    (image,) = desk.claim(lease)
    desk.do(
        settle.settle,
        lease,
        Settlement(desk.shard(1), [settle.Made(image, 0, "c")]),
        desk.identity,
        desk.policy,
    )
    assert desk.end(lease) is True
    assert desk.state("x.jpg") is State.DONE
