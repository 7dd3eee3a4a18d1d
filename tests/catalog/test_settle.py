"""Settle: rows become done here and nowhere else, each version compared, each budget kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, live, settle
from featd.catalog.schema import images, shards
from featd.catalog.settle import Lost, Settlement
from featd.states import OUTCOMES, ClaimedImage, Failure, Kind, Outcome, State, Unchanged


def test_made_rows_are_done_and_name_their_vector(desk: Any) -> None:
    desk.find("a.jpg", "b.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    assert desk.settle(lease, claimed, shard="s.h5") == {State.DONE: 2}
    (shard,) = desk.rows(shards)
    assert (shard.name, shard.rows, shard.live_rows, shard.lease_id) == ("s.h5", 2, 2, lease.id)
    for at, image in enumerate(claimed):
        row = desk.row(image.path)
        assert (row.state, row.lease_id, row.shard_id, row.shard_row) == ("done", None, shard.id, at)
        assert (row.shard_version, row.content) == (1, f"hash of {image.path} 1")


def test_done_clears_suspect_and_budgets(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    spent = {"errors": 2, "crashes": 1, "kills": 3, "suspect": True, "error_kind": Kind.READ_IO, "error": "e"}
    desk.execute(sa.update(images).values(**spent))
    desk.settle(lease, claimed)
    row = desk.row("x.jpg")
    assert (row.errors, row.crashes, row.kills, row.suspect, row.error_kind, row.error) == (
        0,
        0,
        0,
        False,
        None,
        None,
    )


def test_a_version_that_was_raised_is_pending_and_its_vector_kept(desk: Any) -> None:
    desk.find("raised.jpg", "same.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    desk.execute(sa.update(images).values(errors=1, suspect=True))
    desk.find("raised.jpg", size=2)
    settled = desk.settle(lease, claimed)
    assert settled == {State.DONE: 1, State.PENDING: 1}
    row = desk.row("raised.jpg")
    (shard,) = desk.rows(shards)
    assert (row.state, row.version, row.size, row.lease_id) == ("pending", 2, 2, None)
    assert (row.shard_id, row.shard_version, row.content) == (shard.id, 1, "hash of raised.jpg 1")
    assert (row.errors, row.suspect) == (0, False), "budgets are a version's"
    assert desk.state("same.jpg") is State.DONE
    assert shard.live_rows == 2


def test_a_new_vector_leaves_the_old_shard(desk: Any) -> None:
    desk.make_done("a.jpg", "b.jpg")
    desk.find("a.jpg", size=2)
    desk.make_done()
    old, new = desk.rows(shards)
    assert (old.live_rows, new.live_rows) == (1, 1)


def test_a_touched_file_is_done_with_the_vector_that_is_there(desk: Any) -> None:
    desk.make_done("x.jpg")
    desk.find("x.jpg", mtime_ns=2)
    lease = desk.lease()
    (image,) = desk.claim(lease)
    # Compaction moves the vector meanwhile: settle must not move it back.
    desk.execute(sa.update(images).values(shard_row=77))
    settled = desk.settle(lease, unchanged=[Unchanged(image, image.known_content)])
    assert settled == {State.DONE: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.shard_version, row.shard_row) == ("done", 2, 2, 77)
    assert len(desk.rows(shards)) == 1


@pytest.mark.parametrize("how", ["other content", "no shard", "raised"])
def test_a_touched_file_is_pending_where_that_vector_is_not_its_own(desk: Any, how: str) -> None:
    desk.make_done("x.jpg")
    desk.find("x.jpg", mtime_ns=2)
    lease = desk.lease()
    (image,) = desk.claim(lease)
    content = image.known_content
    if how == "other content":
        content = "hash of something else"
    if how == "no shard":  # repair found the shard bad
        desk.execute(sa.update(images).values(shard_id=None, shard_row=None, shard_version=None))
        desk.execute(sa.update(shards).values(live_rows=0))
    if how == "raised":
        desk.find("x.jpg", mtime_ns=3)
    before = desk.row("x.jpg")
    settled = desk.settle(lease, unchanged=[Unchanged(image, content)])
    assert settled == {State.PENDING: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.lease_id) == ("pending", None)
    assert (row.shard_id, row.shard_row, row.shard_version) == (
        before.shard_id,
        before.shard_row,
        before.shard_version,
    )
    assert len(desk.claim(lease)) == 1, "due at once"


def test_an_unchanged_file_whose_shard_is_lost_gets_a_new_vector(desk: Any) -> None:
    lease = desk.make_done("x.jpg", "y.jpg")
    desk.find("x.jpg", "y.jpg", mtime_ns=2)
    claimed = desk.claim(lease)
    shard = desk.row("x.jpg").shard_id
    lost = [Lost(claimed[0], shard), Lost(claimed[1], shard + 1)]  # the second was moved meanwhile
    settled = desk.do(settle.settle, lease, Settlement(lost=lost), desk.identity, desk.policy)
    assert settled == {State.PENDING: 2}
    row = desk.row("x.jpg")
    assert (row.state, row.shard_id, row.shard_row, row.shard_version, row.content) == (
        "pending",
        *[None] * 4,
    )
    assert desk.row("y.jpg").shard_id == shard
    again, kept = desk.claim(lease)
    assert (again.path, again.known_content) == ("x.jpg", None)
    assert (kept.path, kept.known_content) == ("y.jpg", "hash of y.jpg 1")
    desk.settle(lease, [again], [Unchanged(kept, kept.known_content)])
    assert (desk.state("x.jpg"), desk.state("y.jpg")) == (State.DONE, State.DONE)
    desk.end(lease)


@pytest.mark.parametrize("kind", [kind for kind, outcome in OUTCOMES.items() if outcome is Outcome.FAIL])
def test_what_cannot_be_helped_fails_at_once(desk: Any, kind: Kind) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    assert desk.fail(lease, desk.claim(lease)[0], kind, "the reason") == {State.FAILED: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.error_kind, row.error, row.lease_id) == ("failed", kind, "the reason", None)
    assert desk.attempts("x.jpg") == [(kind, 1)]
    assert desk.claim(lease) == []


@pytest.mark.parametrize("kind", [kind for kind, outcome in OUTCOMES.items() if outcome is Outcome.BACK_OFF])
def test_errors_back_off_twice_as_long_and_then_fail(desk: Any, kind: Kind) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    for errors, wait in ((1, 30.0), (2, 60.0)):
        desk.fail(lease, desk.claim(lease)[0], kind)
        row = desk.row("x.jpg")
        assert (row.state, row.errors, row.crashes, row.error_kind) == ("pending", errors, 0, kind)
        assert abs((row.not_before - row.updated_at) - timedelta(seconds=wait)) < timedelta(seconds=2)
        assert desk.claim(lease) == []
        desk.make_due("x.jpg")
    assert desk.fail(lease, desk.claim(lease)[0], kind) == {State.FAILED: 1}
    assert desk.attempts("x.jpg") == [(kind, 1)] * 3


def test_read_missing_is_gone(desk: Any) -> None:
    desk.make_done("x.jpg")
    desk.find("x.jpg", size=2)
    lease = desk.lease()
    assert desk.fail(lease, desk.claim(lease)[0], Kind.READ_MISSING, "no such file") == {State.GONE: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.error_kind, row.errors, row.error) == ("gone", None, 0, "no such file")
    assert row.shard_id is not None
    assert desk.attempts("x.jpg") == [("read.missing", 2)]


@pytest.mark.parametrize("raised", [False, True])
def test_read_changed_writes_what_was_seen(desk: Any, raised: bool) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    (image,) = desk.claim(lease)
    desk.execute(sa.update(images).values(errors=2, crashes=1, suspect=True))
    if raised:
        desk.find("x.jpg", size=8, mtime_ns=8)
    changed = {"size": 9, "mtime_ns": 9, "settle_seconds": 100.0}
    assert desk.fail(lease, image, Kind.READ_CHANGED, **changed) == {State.PENDING: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.size, row.mtime_ns) == ("pending", 2, 9, 9)
    assert (row.errors, row.crashes, row.suspect) == (0, 0, False)
    assert timedelta(seconds=95) < row.not_before - row.updated_at < timedelta(seconds=105)


@pytest.mark.parametrize("kind", [Kind.DECODE_CORRUPT, Kind.READ_IO, Kind.READ_MISSING])
def test_a_failure_of_a_version_before_spends_nothing(desk: Any, kind: Kind) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    (image,) = desk.claim(lease)
    desk.find("x.jpg", size=2)
    assert desk.fail(lease, image, kind) == {State.PENDING: 1}
    row = desk.row("x.jpg")
    assert (row.state, row.version, row.errors, row.error_kind) == ("pending", 2, 0, None)
    assert desk.attempts("x.jpg") == []


def test_a_failure_that_does_not_count_backs_off_and_spends_nothing(desk: Any) -> None:
    """The disk may be at fault: no other file of the root could be read after it."""
    desk.find("x.jpg")
    for _ in range(5):
        lease = desk.lease()
        (image,) = desk.claim(lease)
        assert desk.fail(lease, image, Kind.READ_IO, "EIO", counted=False) == {State.PENDING: 1}
        row = desk.row("x.jpg")
        assert (row.state, row.errors, row.error_kind, row.lease_id) == ("pending", 0, None, None)
        assert row.not_before > row.updated_at
        desk.execute(sa.update(images).values(not_before=row.updated_at))
    assert desk.attempts("x.jpg") == []


def test_everything_in_one_settlement(desk: Any) -> None:
    desk.make_done("touched.jpg")
    desk.find("touched.jpg", mtime_ns=2)
    desk.find("made.jpg", "bad.jpg", "late.jpg", "missing.jpg")
    lease = desk.lease()
    by_path = {image.path: image for image in desk.claim(lease)}
    kinds = {"bad.jpg": Kind.DECODE_CORRUPT, "late.jpg": Kind.READ_IO, "missing.jpg": Kind.READ_MISSING}
    touched = by_path["touched.jpg"]
    settled = desk.settle(
        lease,
        [by_path["made.jpg"]],
        [Unchanged(touched, touched.known_content)],
        [Failure(by_path[path], kind, "") for path, kind in kinds.items()],
    )
    assert settled == {State.DONE: 2, State.FAILED: 1, State.PENDING: 1, State.GONE: 1}


def test_a_message_may_hold_anything(desk: Any) -> None:
    """Last words and decoders' messages come from native code."""
    desk.find("x.jpg")
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT, "bad \0 and \udcff" + "x" * 5000)
    row = desk.row("x.jpg")
    assert row.error.startswith("bad \\x00 and \\udcff")
    assert len(row.error) < 2100


def test_a_shard_is_known_once_it_is_settled(desk: Any) -> None:
    desk.find("x.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    assert desk.do(settle.find_shard, lease, "s.h5") is False
    desk.settle(lease, claimed, shard="s.h5")
    assert desk.do(settle.find_shard, lease, "s.h5") is True
    desk.end(lease)
    assert desk.do(settle.find_shard, lease, "s.h5") is True, "also when the lease has ended meanwhile"


def test_a_shard_is_settled_once(desk: Any) -> None:
    """The name is unique: a second settle of the same shard is refused as a whole."""
    desk.find("x.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    desk.settle(lease, claimed, shard="s.h5")
    before = desk.row("x.jpg")
    with pytest.raises(sa.exc.IntegrityError):
        desk.settle(lease, claimed, shard="s.h5")
    assert desk.row("x.jpg") == before
    assert len(desk.rows(shards)) == 1


@pytest.mark.parametrize("stands", [True, False])
def test_a_lost_answer_to_a_commit_is_said_to_be_unknown(
    desk: Any, unknown_commit: Any, stands: bool
) -> None:
    """The connection breaks in COMMIT, after it was done or before: only a look at the catalog tells which."""
    desk.find("x.jpg")
    lease = desk.lease()
    claimed = desk.claim(lease)
    with unknown_commit(stands=stands), pytest.raises(connect.CommitUnknownError, match="connection lost"):
        desk.settle(lease, claimed, shard="s.h5")
    assert desk.do(settle.find_shard, lease, "s.h5") is stands
    if not stands:
        desk.settle(lease, claimed, shard="s.h5")
    assert desk.state("x.jpg") is State.DONE


def test_an_empty_settlement_is_false(desk: Any) -> None:
    assert not Settlement()
    assert Settlement(unchanged=[Unchanged(ClaimedImage(1, "/r", "x", 1, 1, 1), "x")])


def test_a_settlement_without_a_shard_is_counted_for_the_look_up_after_a_lost_answer(desk: Any) -> None:
    lease = desk.lease()
    desk.find("x")
    (image,) = desk.claim(lease)
    assert desk.do(settle.count_settles, lease) == 0
    desk.settle(lease, failures=[Failure(image, Kind.CRASH, "died")])
    assert desk.do(settle.count_settles, lease) == 1


def test_a_done_image_of_a_root_is_found_at_either_end(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FEW", 2)
    desk.find("p.jpg", "q.jpg", root=desk.other)
    assert desk.do(live.some_done, desk.other) is None
    desk.make_done("done.jpg")
    root = desk.row("done.jpg").root
    assert desk.do(live.some_done, root) == "done.jpg"
    desk.find("x.jpg", "y.jpg", "z.jpg", root=desk.other)
    assert desk.do(live.some_done, root) is None  # among many rows it is not looked for
