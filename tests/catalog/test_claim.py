"""Claim: due rows of roots that are online, oldest first within priority, no row to two."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import claim, connect, leases, live, mend
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images, shards
from featd.errors import LeaseLostError
from featd.states import PRIORITY_ARRIVAL, PRIORITY_ASKED, Kind, State


def _paths(claimed: list[Any]) -> list[str]:
    return [image.path for image in claimed]


def test_a_claimed_row_is_as_it_stood(desk: Any) -> None:
    desk.find("x.jpg", size=5, mtime_ns=6)
    lease = desk.lease()
    (image,) = desk.claim(lease)
    row = desk.row("x.jpg")
    assert (image.id, image.root, image.path, image.size, image.mtime_ns) == (
        row.id,
        desk.root,
        "x.jpg",
        5,
        6,
    )
    assert (image.version, image.suspect, image.known_content) == (1, False, None)
    assert (row.state, row.lease_id) == ("claimed", lease.id)


def test_no_more_than_asked_for_and_each_once(desk: Any) -> None:
    desk.find(*(f"{n}.jpg" for n in range(10)))
    one, two = desk.lease(), desk.lease()
    first, second = desk.claim(one, 6), desk.claim(two, 6)
    assert (len(first), len(second)) == (6, 4)
    assert len({image.id for image in first + second}) == 10
    assert desk.claim(one) == []


def test_files_are_claimed_by_name_if_they_are_pending_and_unchanged(desk: Any) -> None:
    """Due or not, and no others: done ones, those of another worker, of another root or another version stay."""
    desk.make_done("done.jpg")
    other, mine = desk.lease(), desk.lease()
    desk.find("taken.jpg")
    desk.claim(other)
    desk.find("a.jpg", "b.jpg", "changed.jpg", delay_seconds=60.0)
    desk.find("a.jpg", "elsewhere.jpg", root=desk.other)
    names = ("b.jpg", "a.jpg", "done.jpg", "taken.jpg", "elsewhere.jpg", "none.jpg")
    files = [*(FoundFile(name, 1, 1) for name in names), FoundFile("changed.jpg", 1, 2)]
    claimed = desk.do(claim.claim_at, mine, desk.root, files)
    assert [(image.root, image.path) for image in claimed] == [(desk.root, "a.jpg"), (desk.root, "b.jpg")]
    assert all(image.seeks for image in claimed)
    assert desk.do(claim.claim_at, mine, desk.root, files) == []
    states = {path: state for path, (state, *_) in desk.do(live.states_at, desk.root, names).items()}
    assert states == {"a.jpg": "claimed", "b.jpg": "claimed", "done.jpg": "done", "taken.jpg": "claimed"}
    desk.settle(mine, claimed)
    assert desk.row("b.jpg").state == "done"
    desk.end(mine)
    with pytest.raises(LeaseLostError):
        desk.do(claim.claim_at, mine, desk.root, files)


def test_oldest_first_across_roots(desk: Any) -> None:
    for n in range(6):
        desk.find(f"{n}.jpg", root=desk.root if n % 3 else desk.other)
    lease = desk.lease()
    assert sorted(_paths(desk.claim(lease, 3))) == ["0.jpg", "1.jpg", "2.jpg"]
    assert sorted(_paths(desk.claim(lease, 3))) == ["3.jpg", "4.jpg", "5.jpg"]


def test_oldest_first_by_the_time_they_are_due(desk: Any) -> None:
    desk.find("old.jpg")
    desk.find("new.jpg")
    lease = desk.lease()
    desk.settle(lease, failures=[])
    (old,) = desk.claim(lease, 1)
    desk.fail(lease, old, Kind.READ_CHANGED, size=2, mtime_ns=2)  # due again now, behind the other
    assert _paths(desk.claim(lease, 1)) == ["new.jpg"]


def test_arrivals_outrank_the_backlog_and_asked_for_files_both(desk: Any) -> None:
    desk.find("backlog.jpg")
    desk.find("arrival.jpg", priority=PRIORITY_ARRIVAL)
    desk.find("asked.jpg", priority=PRIORITY_ASKED)
    assert _paths(desk.claim(desk.lease(), 2)) == ["asked.jpg", "arrival.jpg"]


def test_an_arrival_stays_one_through_a_back_off(desk: Any) -> None:
    desk.find("arrival.jpg", priority=PRIORITY_ARRIVAL)
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.READ_CHANGED, size=2, mtime_ns=2)
    assert desk.row("arrival.jpg").priority == PRIORITY_ARRIVAL


def test_rows_of_offline_roots_are_not_claimed(desk: Any) -> None:
    desk.find("a.jpg")
    desk.find("b.jpg", root=desk.other)
    lease = desk.lease()
    assert desk.claim(lease, roots=[]) == []
    assert _paths(desk.claim(lease, roots=[desk.other])) == ["b.jpg"]
    assert desk.state("a.jpg") is State.PENDING


def test_very_many_roots(desk: Any) -> None:
    roots = [f"/data/{n:04d}" for n in range(900)]
    desk.find("x.jpg", root=roots[-1])
    desk.find("y.jpg", root=roots[3])
    assert sorted(_paths(desk.claim(desk.lease(), roots=roots))) == ["x.jpg", "y.jpg"]
    for root in roots[:40]:
        desk.find("z.jpg", root=root)
    lease = desk.lease()
    assert [image.root for image in desk.claim(lease, 30, roots)] == roots[:30], "longest waiting first"
    assert [image.root for image in desk.claim(lease, 30, roots)] == roots[30:40]


def test_a_row_whose_time_has_not_come_waits(desk: Any) -> None:
    desk.find("x.jpg", delay_seconds=600.0)
    assert desk.claim(desk.lease()) == []


def test_a_time_too_far_ahead_is_mended(desk: Any) -> None:
    """A wall clock that was wrong for a while; a back-off that may be right is left alone."""
    desk.find("far.jpg", delay_seconds=86_400.0)
    desk.find("backoff.jpg", delay_seconds=3600.0)
    desk.find("far too.jpg", delay_seconds=86_400.0, priority=PRIORITY_ASKED, root=desk.other)
    assert desk.do(mend.mend_far_future) == 2
    assert _paths(desk.claim(desk.lease())) == ["far too.jpg", "far.jpg"]
    assert desk.do(mend.mend_far_future) == 0


def test_one_call_mends_a_bounded_number_of_rows(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend, "MEND_ROWS", 3)
    desk.find("a.jpg", "b.jpg", delay_seconds=86_400.0)
    desk.find("a.jpg", "b.jpg", delay_seconds=86_400.0, root=desk.other)
    assert [desk.do(mend.mend_far_future) for _ in range(3)] == [3, 1, 0]


def test_the_content_of_the_last_vector_is_known(desk: Any) -> None:
    desk.make_done("x.jpg")
    desk.find("x.jpg", mtime_ns=2)
    lease = desk.lease()
    (image,) = desk.claim(lease)
    assert image.known_content == "hash of x.jpg 1"
    desk.end(lease)
    desk.execute(sa.update(images).values(shard_id=None, shard_row=None))
    desk.execute(sa.update(shards).values(live_rows=0))
    (image,) = desk.claim(desk.lease())
    assert image.known_content is None, "content without a vector says nothing"


def test_release_gives_back_what_is_mine(desk: Any) -> None:
    desk.find("a.jpg", "b.jpg", "c.jpg")
    one, two = desk.lease(), desk.lease()
    (a,), (b,) = desk.claim(one, 1), desk.claim(two, 1)
    before = desk.row("a.jpg")
    assert desk.do(claim.release, one, [a.id, b.id, 999]) == 1
    row = desk.row("a.jpg")
    assert row.state == "pending"
    assert (row.not_before, row.errors, row.crashes) == (before.not_before, 0, 0), "it keeps its place"
    assert desk.state("b.jpg") is State.CLAIMED


def test_release_of_what_is_not_held(desk: Any) -> None:
    """A claim whose answer was lost took rows that the worker does not know of."""
    desk.find(*(f"{n}.jpg" for n in range(5)))
    lease, other = desk.lease(), desk.lease()
    held = [image.id for image in desk.claim(lease, 2)]
    desk.claim(lease, 2)
    desk.claim(other, 1)
    assert desk.do(claim.release_unheld, lease, held) == 2
    assert desk.do(claim.release_unheld, lease, []) == 2
    assert desk.do(claim.release_unheld, lease, []) == 0


def test_a_released_row_whose_version_was_raised_has_its_budgets_back(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.READ_IO)
    desk.make_due("x.jpg")
    (image,) = desk.claim(lease)
    desk.do(claim.release, lease, [image.id])
    assert desk.row("x.jpg").errors == 1, "the same version"
    (image,) = desk.claim(lease)
    desk.find("x.jpg", size=2)
    desk.do(claim.release, lease, [image.id])
    assert (desk.row("x.jpg").errors, desk.row("x.jpg").version) == (0, 2)


def _claim_all(engine: sa.Engine, start: Any, taken: list[int], roots: list[str]) -> None:
    lease = connect.transact(
        engine,
        lambda conn: leases.open_lease(conn, host="h", pid=1, device="d", engine="e", lease_seconds=60.0),
    )
    start.wait(30)
    empty = 0
    while empty < 3:
        claimed = connect.transact(engine, lambda conn: claim.claim(conn, lease, 7, roots))
        taken += [image.id for image in claimed]
        empty = 0 if claimed else empty + 1


@pytest.mark.parametrize("roots", [1, 2])
def test_claims_of_many_threads_never_overlap(desk: Any, roots: int) -> None:
    names = [desk.root, desk.other][:roots]
    for root in names:
        desk.find(*(f"{n}.jpg" for n in range(300)), root=root)
    taken: list[list[int]] = [[] for _ in range(8)]
    start = threading.Barrier(8)
    threads = [threading.Thread(target=_claim_all, args=(desk.engine, start, mine, names)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    counted = Counter(image_id for mine in taken for image_id in mine)
    assert set(counted.values()) == {1}
    assert len(counted) == 300 * roots, "and nothing is left over"


def _claim_in_process(url: str, start: Any, taken: Any) -> None:
    engine = connect.open_catalog(url)
    mine: list[int] = []
    _claim_all(engine, start, mine, ["/data/a", "/data/b"])
    engine.dispose()
    taken.put(mine)


def test_claims_of_many_processes_never_overlap(desk: Any, database_url: str) -> None:
    """Two hosts on one PostgreSQL, or several workers on one SQLite."""
    desk.find(*(f"{n}.jpg" for n in range(400)))
    spawn = multiprocessing.get_context("fork")
    start, taken = spawn.Barrier(4), spawn.SimpleQueue()
    desk.engine.dispose()
    processes = [spawn.Process(target=_claim_in_process, args=(database_url, start, taken)) for _ in range(4)]
    for process in processes:
        process.start()
    counted = Counter(image_id for _ in processes for image_id in taken.get())
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert set(counted.values()) == {1}
    assert len(counted) == 400
