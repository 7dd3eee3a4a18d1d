"""Leases and fencing: only the holder of a live lease changes rows, and a clock that is set expires nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import claim, connect, leases, pairing, stats
from featd.catalog.schema import images, shards
from featd.catalog.schema import leases as lease_table
from featd.errors import LeaseLostError, SeatTakenError
from featd.janitor import rescue
from featd.states import Failure, Kind, Lease, RetryPolicy, State, Unchanged


def _ended(desk: Any, lease: Lease) -> Lease:
    """Ended, with its row claimed again under another's id in its name: the worst case."""
    desk.execute(sa.update(lease_table).where(lease_table.c.id == lease.id).values(ended_at=sa.func.now()))
    return lease


def _expired(desk: Any, lease: Lease) -> Lease:
    desk.expire(lease)
    return lease


def _foreign(desk: Any, lease: Lease) -> Lease:
    return Lease(lease.id, "0" * 16)


def _unknown(desk: Any, lease: Lease) -> Lease:
    return Lease(lease.id + 1000, lease.token)


DOINGS: dict[str, Callable[[Any, Lease, Any], object]] = {
    "claim": lambda desk, lease, image: desk.claim(lease),
    "renew": lambda desk, lease, image: desk.do(leases.renew, lease, 60.0, {}),
    "release": lambda desk, lease, image: desk.do(claim.release, lease, [image.id]),
    "release_unheld": lambda desk, lease, image: desk.do(claim.release_unheld, lease, []),
    "settle made": lambda desk, lease, image: desk.settle(lease, [image]),
    "settle failure": lambda desk, lease, image: desk.fail(lease, image, Kind.READ_IO),
    "settle unchanged": lambda desk, lease, image: desk.settle(
        lease, unchanged=[Unchanged(image, "hash of x.jpg 1")]
    ),
}


@pytest.mark.parametrize(
    "spoil", [_ended, _expired, _foreign, _unknown], ids=lambda spoil: spoil.__name__[1:]
)
@pytest.mark.parametrize("doing", DOINGS)
def test_a_lost_lease_changes_nothing(desk: Any, doing: str, spoil: Callable[[Any, Lease], Lease]) -> None:
    desk.make_done("x.jpg")
    desk.find("x.jpg", mtime_ns=2)
    desk.find("later.jpg")
    lease = desk.lease()
    image = desk.claim(lease, 1)[0]
    lost = spoil(desk, lease)
    before = (desk.rows(images), desk.rows(shards), desk.rows(lease_table))
    with pytest.raises(LeaseLostError, match=f"lease {lost.id}"):
        DOINGS[doing](desk, lost, image)
    assert (desk.rows(images), desk.rows(shards), desk.rows(lease_table)) == before


@pytest.mark.parametrize("doing", DOINGS)
def test_the_same_with_a_live_lease_does_something(desk: Any, doing: str) -> None:
    """Without this the test above could pass for the wrong reason."""
    desk.make_done("x.jpg")
    desk.find("x.jpg", mtime_ns=2)
    desk.find("later.jpg")
    lease = desk.lease()
    image = desk.claim(lease, 1)[0]
    before = (desk.rows(images), desk.rows(lease_table))
    DOINGS[doing](desk, lease, image)
    assert (desk.rows(images), desk.rows(lease_table)) != before


def test_settle_touches_only_rows_that_still_are_mine(desk: Any) -> None:
    """A row that was released and claimed by another belongs to the other, though my lease lives."""
    desk.find("x.jpg", "y.jpg")
    mine, others = desk.lease(), desk.lease()
    images_mine = desk.claim(mine)
    desk.do(claim.release, mine, [images_mine[0].id])
    desk.claim(others)
    before = desk.row("x.jpg")
    settled = desk.settle(mine, images_mine)
    assert settled == {State.DONE: 1}
    assert desk.row("x.jpg") == before
    (shard,) = desk.rows(shards)
    assert (shard.rows, shard.live_rows) == (2, 1)
    settled = desk.settle(mine, failures=[Failure(images_mine[0], Kind.DECODE_CORRUPT, "")])
    assert settled == {}
    assert desk.row("x.jpg") == before


def test_renewing_keeps_a_lease(desk: Any, fake_clock: Any) -> None:
    lease = desk.lease(seconds=60.0)
    desk.do(leases.renew, lease, 600.0, {"decode": 0.5})
    if desk.is_sqlite:
        fake_clock.boot_seconds += 599.0
        desk.claim(lease)
        fake_clock.boot_seconds += 1.0
        with pytest.raises(LeaseLostError):
            desk.claim(lease)
    else:
        row = desk.rows(lease_table)[0]
        assert 590 < row.expires_at - row.started_at.timestamp() < 605
    assert desk.rows(lease_table)[0].shares == {"decode": 0.5}


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_a_wall_clock_that_is_set_expires_nothing(desk: Any, fake_clock: Any, step: timedelta) -> None:
    lease = desk.lease()
    desk.find("x.jpg")
    image = desk.claim(lease)[0]
    fake_clock.moment += step
    assert desk.do(leases.expired_leases) == []
    desk.do(leases.renew, lease, 60.0, {})
    desk.settle(lease, [image])
    assert desk.state("x.jpg") is State.DONE


def test_another_boot_ends_every_lease_of_before(desk: Any, fake_clock: Any) -> None:
    lease = desk.lease()
    fake_clock.boot = "another"
    if desk.is_sqlite:
        fake_clock.boot_seconds = 1.0  # far earlier than the lease's end: only the boot tells
        with pytest.raises(LeaseLostError):
            desk.claim(lease)
        assert [one.lease.id for one in desk.do(leases.expired_leases)] == [lease.id]
        assert desk.do(stats.workers) == []
    else:
        desk.claim(lease)  # several hosts, each with boots of its own
        assert desk.do(leases.expired_leases) == []


def test_expired_leases_are_those_that_nobody_ended(desk: Any) -> None:
    live, expired, ended = desk.lease(), desk.lease(host="away"), desk.lease()
    desk.expire(expired)
    desk.expire(ended)
    desk.end(ended)
    (found,) = desk.do(leases.expired_leases)
    assert (found.lease, found.host) == (expired, "away")
    assert [one.lease.id for one in desk.do(leases.open_leases, "h")] == [live.id]
    assert [one.lease.id for one in desk.do(leases.open_leases, "away")] == [expired.id]


def test_the_leases_of_a_seat_are_those_with_its_id(desk: Any) -> None:
    """In whatever run of it, on whatever host; and those of its name that have none, as of a featd before there were
    ids. Those of another seat of the same name are not, as of another pod."""
    mine = [desk.lease("a", seat="1f:aa"), desk.lease("a", seat="1f:bb"), desk.lease("before", seat="1f:cc")]
    mine.append(desk.lease("a"))
    for name, seat in (("a", "1f2:aa"), ("a", "2:aa"), ("b", "2:bb"), ("b", None)):
        desk.lease(name, seat=seat)
    assert [one.lease for one in desk.do(leases.open_leases, "a", "1f:dd")] == mine
    assert [one.lease for one in desk.do(leases.open_leases, "a")] == mine[-1:]


def test_a_seat_is_taken_while_another_of_its_name_has_a_live_lease(desk: Any) -> None:
    desk.lease("a")  # a command's
    desk.lease("b", seat="2:aa")
    desk.lease("a", seat="1:aa")
    assert desk.do(leases.live_elsewhere, "a", "1:bb") is None
    other = desk.lease("a", seat="2:bb", seconds=30.0)
    assert 25 < desk.do(leases.live_elsewhere, "a", "1:bb") <= 30
    pairing.check_seat(desk.engine, "a", None)
    with pytest.raises(SeatTakenError, match="another featd of the name a"):
        pairing.check_seat(desk.engine, "a", "1:bb")
    desk.expire(other)
    pairing.check_seat(desk.engine, "a", "1:bb")


def test_a_restarted_janitor_keeps_its_siblings_and_a_restarted_seat_keeps_nothing(
    desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, the worker of an earlier run had the pid that one of this run has."""
    monkeypatch.setattr(rescue, "_is_sibling", lambda pid: True)
    earlier, now = desk.lease("a", seat="1:aa"), desk.lease("a", seat="1:bb")
    other = desk.lease("a", seat="2:aa")
    assert rescue.Rescue(desk.engine, tmp_path, "a", desk.policy, "1:bb").end_all_of_this_seat() == 1
    assert [desk.do(leases.is_over, lease) for lease in (earlier, now, other)] == [True, False, False]


def test_whether_a_lease_is_over(desk: Any) -> None:
    lease = desk.lease()
    assert desk.do(leases.is_over, lease) is False
    desk.expire(lease)
    assert desk.do(leases.is_over, lease) is False, "it may still be settling; only its end is final"
    desk.end(lease)
    assert desk.do(leases.is_over, lease) is True
    for unknown in (Lease(lease.id, "foreign"), Lease(999, lease.token)):
        assert desk.do(leases.is_over, unknown) is True, "it can settle nothing"


def test_ids_are_never_used_again(desk: Any) -> None:
    first = desk.lease()
    desk.execute(sa.delete(lease_table))
    assert desk.lease().id > first.id


def test_a_lease_counts_what_it_did(desk: Any) -> None:
    desk.find("a.jpg", "b.jpg", "c.jpg")
    lease = desk.lease()
    a, b, c = desk.claim(lease)
    desk.settle(lease, [a], failures=[Failure(b, Kind.DECODE_CORRUPT, "")])
    desk.settle(lease, [c])
    row = desk.rows(lease_table)[0]
    assert (row.done, row.failed) == (2, 1)


def test_policy_is_a_value() -> None:
    assert RetryPolicy() == RetryPolicy(3, 2, 30.0)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_lease_of_an_earlier_featd_holds(desk: Any) -> None:
    """On PostgreSQL it had no boot id, and an upgrade must not happen while it works."""
    desk.find("a.jpg")
    lease = desk.lease()
    (claimed,) = desk.claim(lease)
    desk.execute(sa.update(lease_table).values(boot_id=None))
    with connect.reading(desk.engine) as conn:
        assert leases.any_live(conn)
        assert len(stats.workers(conn)) == 1
    desk.settle(lease, [claimed])
    assert desk.state("a.jpg") is State.DONE


def test_a_lease_ends_with_the_boot_or_with_a_failover_of_the_server(desk: Any) -> None:
    """A replica that became the primary may lack claims and give their ids to other images."""
    desk.find("a.jpg")
    lease = desk.lease()
    (claimed,) = desk.claim(lease)
    desk.execute(sa.update(lease_table).values(boot_id="of another boot, or timeline"))
    with pytest.raises(LeaseLostError):
        desk.settle(lease, [claimed])
    desk.end(lease, reason="expired")
    assert desk.state("a.jpg") is State.PENDING
