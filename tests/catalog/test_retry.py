"""retry-failed: failed rows are pending again with fresh budgets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from featd.catalog import retry
from featd.catalog.leases import InHand
from featd.catalog.schema import images
from featd.states import MAX_KILLS, Kind, State


def _failed(desk: Any, **kinds: Kind) -> None:
    lease = desk.lease()
    desk.find(*kinds)
    for image in desk.claim(lease):
        desk.fail(lease, image, kinds[image.path])


def _walk(desk: Any, **named: Any) -> list[str]:
    found = retry.walk_failed(desk.engine, limit=2, **named)
    return [image.path for batch in found for image in batch]


def test_budgets_start_afresh_and_a_suspect_still_runs_alone(desk: Any) -> None:
    _failed(desk, x=Kind.DECODE_CORRUPT)
    desk.execute(sa.update(images).values(errors=3, crashes=2, kills=3, suspect=True))
    assert desk.do(retry.retry, [desk.id("x")]) == 1
    row = desk.row("x")
    assert (row.state, row.errors, row.crashes, row.kills, row.suspect) == ("pending", 0, 0, 0, True)
    assert (row.error_kind, row.error, row.version) == (None, None, 1)
    assert len(desk.claim(desk.lease())) == 1, "due at once"


def test_only_what_still_is_failed(desk: Any) -> None:
    _failed(desk, x=Kind.DECODE_CORRUPT, y=Kind.DECODE_CORRUPT)
    desk.find("y", size=2)
    ids = [desk.id("x"), desk.id("y"), 999]
    assert desk.do(retry.retry, ids) == 1
    assert desk.do(retry.retry, ids) == 0
    assert desk.do(retry.retry, []) == 0


def test_four_more_kills_after_a_retry(desk: Any) -> None:
    desk.find("x")
    for round_ in range(2):
        for kills in range(1, MAX_KILLS + 1):
            lease = desk.lease()
            desk.claim(lease)
            desk.end(lease, InHand((desk.id("x"),), Kind.KILLED, "signal 9"))
            assert desk.state("x") is (State.FAILED if kills == MAX_KILLS else State.PENDING), (round_, kills)
        desk.do(retry.retry, [desk.id("x")])


def test_kills_are_forgotten_whatever_the_image_failed_of(desk: Any) -> None:
    desk.find("x")
    for _ in range(2):
        for _ in range(MAX_KILLS - 1):
            lease = desk.lease()
            desk.claim(lease)
            desk.end(lease, InHand((desk.id("x"),), Kind.KILLED, "signal 9"))
        assert desk.state("x") is State.PENDING
        desk.fail(lease := desk.lease(), desk.claim(lease)[0], Kind.DECODE_TIMEOUT)
        desk.execute(sa.update(images).values(errors=2))
        desk.make_due("x")
        desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_TIMEOUT)
        assert desk.state("x") is State.FAILED
        desk.do(retry.retry, [desk.id("x")])


def test_the_list_of_failures_and_its_filters(desk: Any) -> None:
    _failed(
        desk, a=Kind.DECODE_CORRUPT, b=Kind.EXTRACT_NOT_FINITE, c=Kind.DECODE_CORRUPT, d=Kind.DECODE_CORRUPT
    )
    desk.make_done("done")
    assert _walk(desk) == ["a", "b", "c", "d"]
    assert _walk(desk, kind=Kind.DECODE_CORRUPT) == ["a", "c", "d"]
    moment = desk.row("c").updated_at
    assert _walk(desk, since=moment) == ["c", "d"]
    assert _walk(desk, since=moment + timedelta(days=1)) == []
    (first,) = desk.do(retry.failed_after, 0, 1)
    assert (first.kind, first.message, first.version, first.root) == (
        Kind.DECODE_CORRUPT,
        "why",
        1,
        desk.root,
    )
