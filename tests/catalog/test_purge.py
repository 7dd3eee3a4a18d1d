"""Purging: rows of images that have been gone for long are deleted, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, dialects, purge
from featd.catalog.enqueue import Enqueued
from featd.catalog.schema import attempts, images
from featd.janitor import purge as janitor_purge
from featd.janitor.purge import purging
from featd.states import Kind


def gone_since(desk: Any, days: float, *paths: str) -> list[int]:
    """Let these images have been gone for so many days; their ids."""
    desk.vanish(*paths)
    ids = sorted(desk.id(path) for path in paths)
    since = desk.now - timedelta(days=days)
    desk.execute(sa.update(images).where(images.c.id.in_(ids)).values(updated_at=since))
    return ids


def paths(desk: Any) -> list[str]:
    return [row.path for row in desk.rows(images)]


def old(desk: Any, days: float = 30.0) -> list[int]:
    with connect.reading(desk.engine) as conn:
        return purge.gone_before(conn, 0, 1000, days, 1000)


def test_only_what_is_gone_for_so_long_is_deleted(desk: Any) -> None:
    desk.make_done("old.jpg", "young.jpg", "there.jpg")
    lease = desk.lease()
    desk.find("failed.jpg")
    (image,) = desk.claim(lease)
    desk.fail(lease, image, Kind.DECODE_CORRUPT)
    ids = gone_since(desk, 31, "old.jpg", "failed.jpg")
    gone_since(desk, 29, "young.jpg")
    past = desk.now - timedelta(days=400)
    desk.execute(sa.update(images).where(images.c.path == "there.jpg").values(updated_at=past))
    assert old(desk) == ids
    assert desk.do(purge.purge, [*ids, desk.id("young.jpg"), desk.id("there.jpg")], 30.0) == 2
    assert set(paths(desk)) == {"young.jpg", "there.jpg"}
    assert desk.rows(attempts) == []
    assert desk.do(purge.purge, ids, 30.0) == 0


def test_an_image_that_comes_back_meanwhile_stays_with_its_vector(desk: Any) -> None:
    desk.make_done("back.jpg", "away.jpg")
    before = desk.row("back.jpg")
    gone_since(desk, 400, "back.jpg", "away.jpg")
    ids = old(desk)
    desk.find("back.jpg")
    assert desk.do(purge.purge, ids, 30.0) == 1
    row = desk.row("back.jpg")
    assert (row.id, row.state, row.shard_id, row.content) == (
        before.id,
        "pending",
        before.shard_id,
        before.content,
    )


def test_an_image_that_comes_back_later_is_a_new_one(desk: Any) -> None:
    desk.make_done("back.jpg")
    (was,) = gone_since(desk, 400, "back.jpg")
    desk.do(purge.purge, [was], 30.0)
    assert desk.find("back.jpg") == Enqueued(new=1)
    row = desk.row("back.jpg")
    assert (row.state, row.version, row.shard_id) == ("pending", 1, None)
    assert row.id > was


def test_a_row_that_is_purged_while_its_file_returns_is_made_anew(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After enqueue has read the row, and before it has locked it."""
    if desk.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    desk.make_done("back.jpg", "other.jpg")
    ids = gone_since(desk, 400, "back.jpg")
    real = dialects.lock_rows

    def lock_rows(*arguments: Any) -> Any:
        monkeypatch.setattr(dialects, "lock_rows", real)
        assert desk.do(purge.purge, ids, 30.0) == 1
        return real(*arguments)

    monkeypatch.setattr(dialects, "lock_rows", lock_rows)
    assert desk.find("back.jpg", "other.jpg") == Enqueued(new=1)
    assert desk.state("back.jpg") == "pending"


@pytest.mark.parametrize(
    ("days", "many", "left"), [(None, 100, 12), (None, 10, 2), (0.0, 10, 12), (30.0, 100, 1), (366.0, 10, 12)]
)
def test_small_catalogs_are_not_purged_by_default(
    desk: Any, monkeypatch: pytest.MonkeyPatch, days: float | None, many: int, left: int
) -> None:
    monkeypatch.setattr(janitor_purge, "MANY_ROWS", many)
    monkeypatch.setattr(janitor_purge, "PAGE", 2)
    monkeypatch.setattr(janitor_purge, "IDS", 5)
    desk.make_done(*(f"{n}.jpg" for n in range(12)))
    gone_since(desk, 365.5, *(f"{n}.jpg" for n in range(12) if n not in (3, 7)))
    gone_since(desk, 31, "3.jpg")
    for _ in purging(desk.engine, days):
        desk.recount()
    assert len(paths(desk)) == left
