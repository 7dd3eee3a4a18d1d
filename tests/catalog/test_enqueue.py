"""Enqueue: what is found becomes pending; what vanished becomes gone, and may come back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featd.catalog import enqueue
from featd.catalog.enqueue import Enqueued, FoundFile, Reread
from featd.catalog.schema import images, shards
from featd.states import PRIORITY_ARRIVAL, PRIORITY_ASKED, PRIORITY_BACKLOG, Kind, State


def test_a_new_file_is_pending_and_due(desk: Any) -> None:
    assert desk.find("x.jpg", size=7, mtime_ns=1_790_000_000_123_456_789) == Enqueued(new=1)
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.size, row.mtime_ns) == ("pending", 1, 7, 1_790_000_000_123_456_789)
    assert (row.errors, row.crashes, row.suspect, row.shard_id) == (0, 0, False, None)
    assert desk.claim(desk.lease())[0].path == "x.jpg"


def test_the_same_file_again_changes_nothing(desk: Any) -> None:
    desk.find("x.jpg")
    before = desk.row("x.jpg")
    assert desk.find("x.jpg") == Enqueued()
    assert desk.row("x.jpg") == before


def test_a_path_is_a_name_under_its_root(desk: Any) -> None:
    desk.find("x.jpg")
    assert desk.find("x.jpg", root=desk.other) == Enqueued(new=1)


def test_one_batch_may_name_a_file_twice(desk: Any) -> None:
    assert desk.find("x.jpg", "x.jpg").new == 1


@pytest.mark.parametrize(("size", "mtime_ns"), [(2, 1), (1, 2), (1, 0)])
def test_a_changed_file_is_a_new_version(desk: Any, size: int, mtime_ns: int) -> None:
    desk.make_done("x.jpg")
    before = desk.row("x.jpg")
    assert desk.find("x.jpg", size=size, mtime_ns=mtime_ns) == Enqueued(changed=1)
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.size, row.mtime_ns) == ("pending", 2, size, mtime_ns)
    # The last vector's place and content stay: the file may only have been touched.
    assert (row.shard_id, row.shard_row, row.shard_version, row.content) == (
        before.shard_id,
        before.shard_row,
        1,
        before.content,
    )


def test_a_new_version_of_a_failed_file_starts_afresh(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT)
    desk.execute(sa.update(images).values(errors=2, crashes=1, kills=3, suspect=True))
    desk.find("x.jpg", size=2)
    row = desk.row("x.jpg")
    assert (row.state, row.errors, row.crashes, row.kills, row.suspect) == ("pending", 0, 0, 0, False)
    assert (row.error_kind, row.error) == (None, None)


def test_ingest_changes_only_size_mtime_and_version_of_a_claimed_row(desk: Any) -> None:
    desk.find("x.jpg")
    desk.claim(desk.lease())
    desk.execute(sa.update(images).values(errors=1, suspect=True, priority=3))
    before = desk.row("x.jpg")
    assert desk.find("x.jpg", size=9, mtime_ns=8, priority=PRIORITY_ASKED) == Enqueued(changed=1)
    after = desk.row("x.jpg")
    assert (after.size, after.mtime_ns, after.version) == (9, 8, 2)
    changed = {name for name in before._fields if getattr(before, name) != getattr(after, name)}
    assert changed == {"size", "mtime_ns", "version"}


def test_a_delay_lets_a_file_settle(desk: Any) -> None:
    desk.find("young.jpg", delay_seconds=3600.0)
    desk.find("old.jpg")
    assert [image.path for image in desk.claim(desk.lease())] == ["old.jpg"]


def test_asking_for_a_waiting_file_moves_it_up(desk: Any) -> None:
    desk.find("x.jpg", delay_seconds=3600.0)
    assert desk.claim(desk.lease()) == []
    desk.find("x.jpg", priority=PRIORITY_ASKED)
    assert desk.row("x.jpg").priority == PRIORITY_ASKED
    assert len(desk.claim(desk.lease())) == 1


def test_a_scan_moves_nothing_down(desk: Any) -> None:
    desk.find("x.jpg", priority=PRIORITY_ARRIVAL)
    desk.find("x.jpg", priority=PRIORITY_BACKLOG)
    assert desk.row("x.jpg").priority == PRIORITY_ARRIVAL


@pytest.mark.parametrize("state", [State.PENDING, State.DONE, State.FAILED])
def test_what_vanished_is_gone_with_a_reason(desk: Any, state: State) -> None:
    desk.find("x.jpg")
    if state is State.DONE:
        desk.make_done()
    if state is State.FAILED:
        lease = desk.lease()
        desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT)
    assert desk.state("x.jpg") is state
    assert desk.vanish("x.jpg", reason="excluded by the configuration") == 1
    row = desk.row("x.jpg")
    assert (row.state, row.error, row.error_kind) == ("gone", "excluded by the configuration", None)


def test_a_claimed_row_is_left_to_its_worker(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    (image,) = desk.claim(lease)
    assert desk.vanish("x.jpg") == 0
    desk.fail(lease, image, Kind.READ_MISSING, "no such file")
    assert desk.state("x.jpg") is State.GONE
    assert desk.attempts("x.jpg") == [("read.missing", 1)]


def test_gone_is_marked_once(desk: Any) -> None:
    desk.find("x.jpg")
    assert (desk.vanish("x.jpg"), desk.vanish("x.jpg")) == (1, 0)


@pytest.mark.parametrize(
    "how", ["as it was", "changed", "never done", "vector of an older version", "no shard"]
)
def test_what_comes_back_is_read_again(desk: Any, how: str) -> None:
    """Its shard may be gone by now, and its content another: a worker compares both."""
    if how == "never done":
        desk.find("x.jpg")
    else:
        desk.make_done("x.jpg")
    version = 1
    if how == "vector of an older version":
        desk.find("x.jpg", size=2)
        desk.find("x.jpg", size=1)
        version = 3
    if how == "no shard":
        desk.execute(sa.update(images).values(shard_id=None, shard_row=None))
        desk.execute(sa.update(shards).values(live_rows=0))
    before = desk.row("x.jpg")
    desk.vanish("x.jpg")
    assert desk.row("x.jpg").shard_id == before.shard_id, "a gone row still names its vector"
    assert desk.find("x.jpg", mtime_ns=2 if how == "changed" else 1) == Enqueued(returned=1)
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.error) == ("pending", version + 1, None)
    assert (row.shard_id, row.content) == (before.shard_id, before.content)


def test_a_changed_waiting_file_waits_again(desk: Any) -> None:
    desk.find("x.jpg")
    desk.find("x.jpg", size=2, delay_seconds=100.0)
    row = desk.row("x.jpg")
    assert row.version == 2
    assert timedelta(seconds=95) < row.not_before - row.updated_at < timedelta(seconds=105)


def test_known_files_are_walked_in_order_of_path(desk: Any) -> None:
    # Byte order, whatever the database's own collation would say.
    paths = ["B.jpg", "_.jpg", "a.jpg", "a/b.jpg", "é.jpg", "\U0001f600.jpg"]
    desk.find(*reversed(paths))
    desk.find("not-here.jpg", root=desk.other)
    desk.find("gone.jpg")
    desk.vanish("gone.jpg")
    walked = [file.path for known in enqueue.walk_known(desk.engine, desk.root, 2) for file in known]
    assert walked == paths


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1), max_size=6
    ),
    size=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
)
def test_any_name_and_any_stat_is_kept_as_it_is(
    desk: Any, paths: list[str], size: int, mtime_ns: int
) -> None:
    files = [FoundFile(path, size, mtime_ns) for path in paths]
    desk.do(enqueue.enqueue, desk.root, files)
    for path in paths:
        row = desk.row(path)
        assert (row.size, row.mtime_ns) == (size, mtime_ns)
    assert desk.do(enqueue.enqueue, desk.root, files) == Enqueued()


# A ctime that moves alone


def look(desk: Any, ctime_ns: int | None, **named: Any) -> Enqueued:
    """x.jpg, as it always was, but for its ctime."""
    found = [FoundFile("x.jpg", 1, 1, ctime_ns)]
    enqueued: Enqueued = desk.do(enqueue.enqueue, desk.root, found, **named)
    return enqueued


def test_a_ctime_that_moves_alone_leaves_a_done_image_done_and_in_doubt(desk: Any) -> None:
    desk.make_done("x.jpg")
    assert look(desk, 5) == Enqueued(), "not known before: no doubt"
    before = desk.row("x.jpg")
    assert before.ctime_ns == 5
    for _ in range(2):
        assert look(desk, 6) == Enqueued(doubted=[FoundFile("x.jpg", 1, 1, 6)])
    assert desk.row("x.jpg") == before, "it is in doubt until its content was compared"
    assert look(desk, None) == Enqueued(), "what is not known tells nothing"


def test_an_event_makes_doubt_whatever_the_ctime_says(desk: Any) -> None:
    """A catalog of an earlier version knows none; and a write through a mapping may move no time."""
    desk.make_done("x.jpg")
    assert look(desk, 5, heard=True).doubted
    assert desk.row("x.jpg").ctime_ns is None
    look(desk, 5)
    (doubted,) = look(desk, 5, heard=True).doubted
    assert desk.do(enqueue.compare, desk.root, [(doubted, "other")]) == (1, [])
    assert desk.state("x.jpg") is State.PENDING


def test_an_event_alone_does_not_try_a_failed_image_again(desk: Any) -> None:
    desk.find("x.jpg")
    look(desk, 5)
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT)
    assert look(desk, 5, heard=True) == Enqueued()
    assert desk.state("x.jpg") is State.FAILED


@pytest.mark.parametrize("reread", list(Reread))
@pytest.mark.parametrize("moved", [False, True])
def test_a_command_has_files_read_again(desk: Any, reread: Reread, moved: bool) -> None:
    desk.make_done("x.jpg")
    look(desk, 5)
    wanted = reread is Reread.ALL or (moved and reread is Reread.DOUBTED)
    found = look(desk, 6 if moved else 5, reread=reread, priority=PRIORITY_ASKED)
    assert found.reread == wanted
    assert bool(found.doubted) is (moved and reread is Reread.NONE)
    row = desk.row("x.jpg")
    assert (row.state, row.version) == (("pending", 2) if wanted else ("done", 1))
    assert row.content is not None


def test_a_failed_image_is_tried_again_once_its_ctime_moves(desk: Any) -> None:
    """Its size and time may have been set before its data came."""
    desk.find("x.jpg")
    look(desk, 5)
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT)
    assert look(desk, 5) == Enqueued()
    assert look(desk, 6) == Enqueued(changed=1)
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.error_kind, row.ctime_ns) == ("pending", 2, None, 6)


def test_a_claimed_image_stays_in_doubt_until_it_is_done(desk: Any) -> None:
    desk.find("x.jpg")
    look(desk, 5)
    lease = desk.lease()
    claimed = desk.claim(lease)
    doubted = look(desk, 6).doubted
    assert doubted
    assert desk.do(enqueue.compare, desk.root, [(doubted[0], "other")]) == (0, doubted)
    desk.settle(lease, claimed, content="the same")
    assert desk.do(enqueue.compare, desk.root, [(doubted[0], "the same")]) == (0, [])
    assert (desk.state("x.jpg"), desk.row("x.jpg").ctime_ns) == (State.DONE, 6)
    assert look(desk, 6) == Enqueued()


def test_other_content_is_a_new_version(desk: Any) -> None:
    desk.make_done("x.jpg", "y.jpg")
    look(desk, 5)
    (doubted,) = look(desk, 6).doubted
    assert desk.do(enqueue.compare, desk.root, [(doubted, "other")]) == (1, [])
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.priority, row.ctime_ns) == ("pending", 2, PRIORITY_ARRIVAL, 6)
    assert desk.state("y.jpg") is State.DONE


def test_content_of_another_version_says_nothing(desk: Any) -> None:
    desk.make_done("x.jpg")
    look(desk, 5)
    (doubted,) = look(desk, 6).doubted
    desk.find("x.jpg", size=2)
    lease = desk.lease()
    desk.settle(lease, desk.claim(lease))
    assert desk.do(enqueue.compare, desk.root, [(doubted, "other")]) == (0, [])
    assert (desk.state("x.jpg"), desk.row("x.jpg").version) == (State.DONE, 2)


def test_files_that_are_expected_to_be_new_are_compared_where_they_are_not(desk: Any) -> None:
    desk.make_done("changed.jpg", "same.jpg")
    row = desk.row("same.jpg")
    files = [
        FoundFile("a.jpg", 1, 1),
        FoundFile("changed.jpg", 99, 1),
        FoundFile("same.jpg", row.size, row.mtime_ns),
    ]
    enqueued = desk.do(enqueue.enqueue, desk.root, files, new=True)
    assert (enqueued.new, enqueued.changed) == (1, 1)
    assert desk.row("a.jpg").state == desk.row("changed.jpg").state == "pending"
    assert desk.row("same.jpg").state == "done"
    enqueued = desk.do(enqueue.enqueue, desk.root, [FoundFile("b.jpg", 1, 1)], new=True)
    assert (enqueued.new, desk.row("b.jpg").state) == (1, "pending")


def test_the_checks_of_the_schema_hold_after_an_insert_without_them(desk: Any) -> None:
    def work(conn: sa.Connection) -> None:
        enqueue.enqueue(conn, desk.root, [FoundFile("a.jpg", 1, 1)])
        conn.execute(sa.update(images).values(state="nonsense"))

    with pytest.raises(sa.exc.IntegrityError):
        desk.do(work)
