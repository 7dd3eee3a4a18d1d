"""What status and a drain ask: right, and answered without counting rows."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import claim, counters, enqueue, leases, live, mend, retry, stats, values
from featd.catalog.counters import StateChanges
from featd.catalog.stats import DeviceTotals, FailureLine, ShardTotals
from featd.states import PRIORITY_ARRIVAL, Kind, State


def test_an_empty_catalog(desk: Any) -> None:
    assert desk.do(counters.counts) == dict.fromkeys(State, 0)
    assert desk.do(stats.shard_totals) == ShardTotals(0, 0, 0, 0)
    assert desk.do(stats.workers) == []
    assert desk.do(stats.failures_by_kind) == []
    assert desk.do(stats.pending_roots) == set()
    assert desk.do(stats.next_due_seconds) is None


def test_counts_and_totals(desk: Any) -> None:
    desk.make_done("a", "b")
    desk.find("b", size=2)
    desk.make_done("c")
    desk.find("d")
    counts = desk.do(counters.counts)
    assert (counts[State.DONE], counts[State.PENDING]) == (3, 1)
    assert desk.do(stats.shard_totals) == ShardTotals(2, 4, 3, 8192)


def test_workers_are_the_live_leases(desk: Any) -> None:
    expired = desk.lease(device="cpu:9")
    desk.expire(expired)
    desk.end(desk.lease(device="cpu:8"))
    desk.lease(host="b", device="cpu:0")
    desk.lease(host="a", device="cpu:1", seconds=600.0)
    lines = desk.do(stats.workers)
    assert [(line.host, line.device) for line in lines] == [("a", "cpu:1"), ("b", "cpu:0")]
    assert 590 < lines[0].expires_in_seconds <= 600


def test_totals_of_a_device_are_of_all_its_workers(desk: Any) -> None:
    desk.find("a", "b", "c")
    for host, failing in (("x", False), ("x", True), ("y", False)):
        lease = desk.lease(host=host, device="cpu:0")
        (image,) = desk.claim(lease, 1)
        if failing:
            desk.fail(lease, image, Kind.DECODE_CORRUPT)
        else:
            desk.settle(lease, [image])
        desk.end(lease)
    desk.lease(host="x", device=leases.COMPACTION)
    assert desk.do(stats.device_totals) == [
        DeviceTotals("x", "cpu:0", 1, 1),
        DeviceTotals("y", "cpu:0", 1, 0),
    ]


def test_failures_by_kind(desk: Any) -> None:
    desk.find("a", "b", "c")
    lease = desk.lease()
    kinds = [Kind.DECODE_CORRUPT, Kind.EXTRACT_NOT_FINITE, Kind.DECODE_CORRUPT]
    for image, kind in zip(desk.claim(lease), kinds, strict=True):
        desk.fail(lease, image, kind)
    assert desk.do(stats.failures_by_kind) == [
        FailureLine("decode.corrupt", 2, f"{desk.root}/c"),
        FailureLine("extract.not_finite", 1, f"{desk.root}/b"),
    ]


def test_roots_with_something_to_do(desk: Any) -> None:
    desk.find("a", root="/1")
    desk.find("b", "c", root="/2")
    desk.make_done("x")
    assert desk.do(stats.pending_roots) == {"/1", "/2"}
    desk.claim(desk.lease(), roots=["/2"])
    assert desk.do(stats.pending_roots) == {"/1", "/2"}, "claimed rows are not done"


def test_when_the_next_row_is_due(desk: Any) -> None:
    desk.find("late", delay_seconds=500.0, root="/1")
    assert 490 < desk.do(stats.next_due_seconds) <= 500
    desk.find("sooner", delay_seconds=50.0, priority=PRIORITY_ARRIVAL)
    assert 40 < desk.do(stats.next_due_seconds) <= 50
    desk.find("now")
    assert desk.do(stats.next_due_seconds) == 0.0
    overdue = desk.do(stats.overdue_seconds)
    assert overdue.pop("/1") == 0, "not due yet"
    assert list(overdue) == [desk.root]
    assert 0 <= overdue[desk.root] < 60
    desk.make_due("sooner")
    assert desk.do(stats.overdue_seconds)[desk.root] > 20 * 365 * 86_400


def test_live_vectors_are_those_of_done_rows_in_order(desk: Any) -> None:
    desk.make_done("a", "b", "c", "d")
    desk.vanish("b")
    desk.find("c", size=2)
    walked = [vector for batch in live.walk_live(desk.engine, 1) for vector in batch]
    assert [(vector.path, vector.shard_row, vector.version) for vector in walked] == [
        ("a", 0, 1),
        ("d", 3, 1),
    ]
    assert walked[0].shard_path.endswith("shard-1.h5")


def test_known_shards_among_any_number_of_names(desk: Any) -> None:
    desk.make_done("a")
    names = [f"shard-{n}.h5" for n in range(70_000)]
    assert desk.do(stats.known_shards, names) == {"shard-1.h5"}
    assert desk.do(stats.known_shards, []) == set()


def test_values_are_kept_as_json(desk: Any) -> None:
    assert desk.do(values.get_value, "ingest") is None
    for value in ({"last": "é"}, [1, 2.5], None, "x"):
        desk.do(values.set_value, "ingest", value)
        assert desk.do(values.get_value, "ingest") == value


def test_a_change_that_is_none_costs_no_statement(desk: Any) -> None:
    statements: list[str] = []
    listener = lambda *args: statements.append(args[2])  # noqa: E731
    sa.event.listen(desk.engine, "before_cursor_execute", listener)
    desk.do(counters.apply, StateChanges({State.DONE: 0}))
    sa.event.remove(desk.engine, "before_cursor_execute", listener)
    assert not [text for text in statements if "settings" in text]


# Statements that run often, and the index that each must walk. A scan would be a cliff at a million rows.
HOT = {
    "claim": "ix_images_claim",
    "release_unheld": "ix_images_lease_id",
    "end_lease": "ix_images_lease_id",
    "pending_roots": "ix_images_claim",
    "next_due_seconds": "ix_images_claim",
    "overdue_seconds": "ix_images_claim",
    "mend_far_future": "ix_images_claim",
    "failures_by_kind": "ix_images_failed",
    "settle": "",
    "enqueue": "",
    "retry": "",
    "enqueue_new": "",
    "known_files": "",
    "known_between": "",
}


@pytest.mark.parametrize(
    "database_url", ["sqlite"], indirect=True
)  # PostgreSQL scans tables as small as these
@pytest.mark.parametrize("doing", HOT)
def test_no_hot_statement_scans_the_images(desk: Any, doing: str) -> None:
    """On SQLite, whose plans do not depend on how many rows there are."""
    if not desk.is_sqlite:
        pytest.skip(
            "PostgreSQL scans small tables whatever their indexes; benchmarks/catalog.py --explain looks"
        )

    desk.make_done("done")
    desk.find("a", "b", "c")
    desk.find("a", root=desk.other)
    lease = desk.lease()
    claimed = desk.claim(lease, 2)
    plans: list[str] = []

    def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "images" in statement:
            cursor.execute("EXPLAIN QUERY PLAN " + statement, parameters)
            plans.extend(row[3] for row in cursor.fetchall())

    sa.event.listen(desk.engine, "before_cursor_execute", explain)
    try:
        match doing:
            case "claim":
                desk.claim(lease)
            case "release_unheld":
                desk.do(claim.release_unheld, lease, [claimed[0].id])
            case "end_lease":
                desk.do(leases.end_lease, lease, "", desk.policy)
            case "settle":
                desk.settle(lease, claimed)
            case "enqueue":
                desk.find("a", "c", size=2)
            case "retry":
                desk.do(retry.retry, [1, 2])
            case "enqueue_new":
                desk.find("c", "d", new=True)
            case "known_between":
                desk.do(enqueue.known_between, desk.root, "a", "c", 10, folder="", priority=PRIORITY_ARRIVAL)
            case "known_files":
                desk.do(enqueue.known_files, "a", desk.root, 10)
            case "mend_far_future":
                desk.do(mend.mend_far_future)
            case name:
                desk.do(getattr(stats, name))
    finally:
        sa.event.remove(desk.engine, "before_cursor_execute", explain)
    scans = [
        plan
        for plan in plans
        if plan.startswith(("SCAN images", "SCAN known"))
        and not plan.endswith(("ix_images_claim", "ix_images_failed"))
    ]
    assert not scans
    assert HOT[doing] in " ".join(plans)
    assert plans
