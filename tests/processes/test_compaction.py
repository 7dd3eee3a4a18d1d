"""Compaction, step by step: what is merged, what readers and workers see meanwhile, and what stays for how long."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

import featd
from featd import clock
from featd.catalog import connect, corrections, enqueue, leases, live, mend, schema, settle, values
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Settlement
from featd.config import StoreConfig
from featd.janitor import choose
from featd.janitor.compaction import Compaction, Preview
from featd.shards.read import ShardReader
from featd.shards.store import shards_folder
from featd.shards.write import ShardWriter
from featd.states import Correction, Lease, SealedShard, State, Unchanged
from filled import POLICY, Filled


def compaction(filled: Filled, **store: Any) -> Compaction:
    config = StoreConfig(
        path=filled.store, **{"shard_rows": 64, "grace_seconds": 3600.0, "keep_gone_days": 30.0, **store}
    )
    return Compaction(filled.catalog, config, "here", 60.0)


def work(one: Compaction) -> Compaction:
    for _ in one.work():
        pass
    return one


def eager(filled: Filled) -> Compaction:
    return Compaction(filled.catalog, StoreConfig(path=filled.store, shard_rows=64), "here", 60.0, eager=True)


def merges(preview: Preview) -> tuple[int, int]:
    return preview.merged, preview.made


def many_small(filled: Filled, count: int = 10, each: int = 2) -> list[str]:
    paths = [[f"{n}-{at}.jpg" for at in range(each)] for n in range(count)]
    for some in paths:
        filled.done(some)
    return [path for some in paths for path in some]


def rows(filled: Filled, table: sa.Table) -> list[sa.Row[Any]]:
    with connect.reading(filled.catalog) as conn:
        return list(conn.execute(sa.select(table).order_by(table.c.id)))


def shards(filled: Filled, *, retired: bool = False) -> list[sa.Row[Any]]:
    return [shard for shard in rows(filled, schema.shards) if (shard.retired is not None) is retired]


def files(filled: Filled) -> set[str]:
    return {path.name for path in shards_folder(filled.store).rglob("*") if path.is_file()}


def check_counts(filled: Filled) -> None:
    named: dict[int, int] = {}
    for image in rows(filled, schema.images):
        if image.shard_id is not None:
            named[image.shard_id] = named.get(image.shard_id, 0) + 1
    counted = {shard.id: shard.live_rows for shard in rows(filled, schema.shards) if shard.live_rows}
    assert counted == named


def test_small_shards_become_one_with_the_same_vectors(filled: Filled) -> None:
    many_small(filled)
    before = filled.live()
    done = work(compaction(filled))
    assert (done.merged, done.made) == (10, 1)
    (shard,) = shards(filled)
    assert (shard.rows, shard.live_rows) == (20, 20)
    assert filled.live() == before
    check_counts(filled)
    with ShardReader(filled.store / shard.path) as reader:
        assert reader.attributes["fingerprint"] == "f" * 64
        assert set(reader.contents()) == {"xxh3_128:0"}
        assert {root.decode() for root in reader.roots()} == {str(filled.roots[0])}
    assert all(one.ended_at for one in rows(filled, schema.leases) if one.device == leases.COMPACTION)
    assert work(compaction(filled)).merged == 0


def test_a_root_with_a_backslash_keeps_its_name(tmp_path: Path, database_url: str) -> None:
    filled = Filled(tmp_path / "instance", database_url, (tmp_path / "back\\slash",))
    many_small(filled)
    work(compaction(filled))
    (shard,) = shards(filled)
    with ShardReader(filled.store / shard.path) as reader:
        assert {os.fsdecode(root) for root in reader.roots()} == {str(filled.roots[0])}
    with featd.open(filled.config) as features:
        assert set(next(features.batches()).roots) == {str(filled.roots[0])}
    filled.catalog.dispose()


def test_few_or_full_shards_are_left_alone(filled: Filled) -> None:
    many_small(filled, count=7)
    filled.done([f"full-{n}.jpg" for n in range(40)])
    assert work(compaction(filled)).merged == 0
    assert merges(compaction(filled).preview()) == (0, 0)
    filled.done(["eighth.jpg", "ninth.jpg"])
    assert merges(compaction(filled).preview()) == (8, 1)
    assert work(compaction(filled)).merged == 8


def test_eager_compaction_does_not_wait_for_more(filled: Filled) -> None:
    many_small(filled, count=3)
    filled.done([f"large-{n}.jpg" for n in range(30)])
    before = filled.live()
    assert work(compaction(filled)).merged == 0
    assert merges(eager(filled).preview()) == (4, 1)
    assert work(eager(filled)).merged == 4
    assert filled.live() == before
    assert merges(eager(filled).preview()) == (0, 0)


def test_a_preview_counts_each_shard_once(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged twice, too; and a shard of which nothing is left becomes none."""
    monkeypatch.setattr(choose, "MOST_FILES", 16)
    many_small(filled, count=70, each=1)
    paths = [f"replaced-{n}.jpg" for n in range(2)]
    filled.done(paths)
    connect.transact(
        filled.catalog, enqueue.enqueue, str(filled.roots[0]), [FoundFile(path, 11, 2) for path in paths]
    )
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))
    assert merges(compaction(filled).preview()) == (65, 1)
    done = work(compaction(filled))
    assert (done.merged, done.made) == (1 + 64 + 4, 4 + 1)
    assert sorted(shard.rows for shard in shards(filled)) == [1] * 6 + [2, 64]


def test_files_stay_for_the_time_of_grace_and_rows_with_them(filled: Filled) -> None:
    many_small(filled)
    old = files(filled)
    filled.end_lease()
    work(compaction(filled))
    assert old < files(filled)
    assert {shard.name for shard in shards(filled, retired=True)} == old
    assert work(compaction(filled)).removed == 0
    assert work(compaction(filled, grace_seconds=0)).removed == 10
    assert files(filled) == {shard.name for shard in rows(filled, schema.shards)}
    assert len(filled.live()) == 20


def test_a_clock_that_was_ahead_does_not_keep_files_for_longer(filled: Filled) -> None:
    many_small(filled)
    filled.end_lease()
    work(compaction(filled))
    with filled.catalog.begin() as conn:
        these = sa.update(schema.shards).where(schema.shards.c.retired.is_not(None))
        conn.execute(these.values(retired=clock.utcnow() + timedelta(days=3)))
    assert work(compaction(filled, grace_seconds=0)).removed == 0
    connect.transact(filled.catalog, mend.mend_retired)
    assert work(compaction(filled)).removed == 0, "the time of grace begins now"
    assert work(compaction(filled, grace_seconds=0)).removed == 10


def test_the_last_shard_of_a_worker_that_lives_stays(filled: Filled) -> None:
    """It may look for it, after a COMMIT whose reply was lost."""
    many_small(filled)
    last = shards(filled)[-1]
    work(compaction(filled))
    assert work(compaction(filled, grace_seconds=0)).removed == 9
    assert connect.transact(filled.catalog, settle.find_shard, filled.lease, last.name)
    assert (filled.store / last.path).exists()
    filled.end_lease()
    assert work(compaction(filled, grace_seconds=0)).removed == 1


def test_a_reader_goes_on_and_finds_vectors_that_moved(filled: Filled) -> None:
    many_small(filled)
    with connect.reading(filled.catalog) as conn:
        known = live.live_vectors(conn, 0, 100)
    with ShardReader(filled.store / known[0].shard_path) as reader:
        filled.end_lease()
        work(compaction(filled))
        work(compaction(filled, grace_seconds=0))
        assert reader.read("fc7", np.array([known[0].shard_row])).size == 5
    with connect.reading(filled.catalog) as conn:
        moved = live.still_live(conn, known)
    assert [one.image_id for one in moved] == [one.image_id for one in known]
    assert all((filled.store / one.shard_path).exists() for one in moved)


def test_vectors_that_no_image_names_are_left_out(filled: Filled) -> None:
    paths = many_small(filled)
    replaced = paths[:6]
    root = str(filled.roots[0])
    found = [FoundFile(path, 11, 2) for path in replaced]
    connect.transact(filled.catalog, enqueue.enqueue, root, found)
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))
    before = filled.live()
    work(compaction(filled))
    assert sum(shard.rows for shard in shards(filled)) == 20
    assert filled.live() == before
    check_counts(filled)


def test_images_that_are_gone_for_long_lose_their_vectors(filled: Filled) -> None:
    many_small(filled)
    ids = [image.id for image in rows(filled, schema.images)][:5]
    connect.transact(filled.catalog, enqueue.mark_gone, ids, "the file is gone")
    assert work(compaction(filled)).forgotten == 0
    assert sum(shard.rows for shard in shards(filled)) == 20
    assert work(compaction(filled, keep_gone_days=0)).forgotten == 5
    gone = [image for image in rows(filled, schema.images) if image.state == State.GONE]
    assert [(image.shard_id, image.content) for image in gone] == [(None, None)] * 5
    check_counts(filled)
    assert len(filled.live()) == 15


def test_the_newest_shard_stays_when_nothing_of_it_is_left(filled: Filled) -> None:
    """Its row tells how far the catalog has come."""
    many_small(filled)
    filled.end_lease()
    ids = [image.id for image in rows(filled, schema.images)]
    connect.transact(filled.catalog, enqueue.mark_gone, ids, "the file is gone")
    assert work(compaction(filled, keep_gone_days=0)).merged == 10
    newest = shards(filled, retired=True)[-1].name
    assert work(compaction(filled, grace_seconds=0)).removed == 9
    assert work(compaction(filled, grace_seconds=0)).removed == 0
    assert files(filled) == {newest} == {shard.name for shard in rows(filled, schema.shards)}


def during_a_merge(filled: Filled, what: Callable[[], object]) -> Compaction:
    """A compaction during which `what` happens, once rows are copied and before images move."""
    seal = ShardWriter.seal
    with pytest.MonkeyPatch.context() as patch:

        def sealed(writer: ShardWriter) -> SealedShard:
            patch.undo()
            what()
            return seal(writer)

        patch.setattr(ShardWriter, "seal", sealed)
        return work(compaction(filled))


def test_what_is_settled_during_a_merge_keeps_its_newer_vector(filled: Filled) -> None:
    paths = many_small(filled)

    def replace_some() -> None:
        found = [FoundFile(path, 11, 2) for path in paths[:3]]
        connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), found)
        shard, made = filled.seal(filled.claim())
        filled.settle(Settlement(shard, made))

    assert during_a_merge(filled, replace_some).merged == 10
    new = [image for image in rows(filled, schema.images) if image.version == 2]
    assert len(new) == 3
    assert {image.shard_version for image in new} == {2}
    assert len(filled.live()) == 20
    check_counts(filled)


def test_claimed_and_failed_images_take_their_vectors_along(filled: Filled) -> None:
    paths = many_small(filled)
    connect.transact(
        filled.catalog, enqueue.enqueue, str(filled.roots[0]), [FoundFile(path, 11, 2) for path in paths]
    )
    claimed = filled.claim(5)
    work(compaction(filled))
    (shard,) = shards(filled)
    assert shard.live_rows == 20
    check_counts(filled)
    unchanged = [Unchanged(image, "xxh3_128:0") for image in claimed]
    filled.settle(Settlement(unchanged=unchanged))
    assert len(filled.live()) == 5


def test_a_wrong_count_moves_nothing_and_is_told(filled: Filled, caplog: pytest.LogCaptureFixture) -> None:
    many_small(filled)
    wrong = shards(filled)[3]
    with filled.catalog.begin() as conn:
        which = schema.shards.c.id == wrong.id
        conn.execute(sa.update(schema.shards).where(which).values(live_rows=3))
    before = filled.live()
    work(compaction(filled))
    assert wrong.name in {shard.name for shard in shards(filled)}
    assert len(shards(filled)) == 2, "the others are merged"
    assert filled.live() == before
    assert "featd verify" in caplog.text


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_faulty_shard_is_left_and_the_others_are_merged(
    filled: Filled, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    many_small(filled)
    faulty = shards(filled)[4]
    path = filled.store / faulty.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if how == "missing" else path.write_bytes(data)
    done = work(compaction(filled))
    assert done.merged == 9
    assert faulty.name in {shard.name for shard in shards(filled)}
    assert faulty.path in caplog.text
    check_counts(filled)


def test_two_compactions_at_once_merge_each_shard_once(filled: Filled) -> None:
    many_small(filled)
    before = filled.live()
    done = during_a_merge(filled, lambda: work(compaction(filled)))
    assert done.merged == 0
    assert len(shards(filled)) == 1
    assert filled.live() == before
    assert files(filled) == {shard.name for shard in rows(filled, schema.shards)}


def test_a_lost_lease_moves_nothing(filled: Filled) -> None:
    many_small(filled)
    before = filled.live()

    def end_lease() -> None:
        (lease,) = (one for one in rows(filled, schema.leases) if one.device == leases.COMPACTION)
        connect.transact(filled.catalog, leases.end_lease, Lease(lease.id, lease.token), "test", POLICY)

    assert during_a_merge(filled, end_lease).merged == 0
    assert len(shards(filled)) == 10
    assert filled.live() == before
    assert work(compaction(filled)).merged == 10


def test_a_full_disk_leaves_everything_as_it_was(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    many_small(filled)
    before, old = filled.live(), files(filled)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            work(compaction(filled))
    assert (filled.live(), files(filled)) == (before, old)
    assert work(compaction(filled)).merged == 10


def test_it_may_be_stopped_at_any_step(filled: Filled) -> None:
    many_small(filled)
    before, old = filled.live(), files(filled)
    for after in range(1, 13):
        steps = compaction(filled).work()
        for _ in range(after):
            next(steps)
        steps.close()
        assert filled.live() == before
        assert len(shards(filled)) == 10
        assert not [name for name in files(filled) - old if name.endswith(".part")]
        assert all(one.ended_at for one in rows(filled, schema.leases) if one.device == leases.COMPACTION)


def test_a_correction_that_nobody_decided_about_keeps_shards_where_they_are(filled: Filled) -> None:
    many_small(filled)
    newest = shards(filled)[-1].id
    noted = {Correction.TIFF_ALPHA: newest}
    connect.transact(filled.catalog, values.set_value, corrections.LACKED, noted)
    assert work(compaction(filled)).merged == 0
    connect.transact(filled.catalog, values.set_value, corrections.LACKED, {Correction.TIFF_ALPHA: 0})
    connect.transact(filled.catalog, values.set_value, corrections.REQUEUED, noted)
    assert work(compaction(filled)).merged == 10
    (shard,) = shards(filled)
    with connect.reading(filled.catalog) as conn:
        assert corrections.requeued(conn) == {Correction.TIFF_ALPHA: shard.id}
