"""What compaction merges next: counts of files and of copies, without any file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from featd.catalog.compact import OldShard
from featd.config import StoreConfig
from featd.janitor.choose import FULL, choose, merged, plan

STORE = StoreConfig()
KB = 1024


def shard(
    shard_id: int, rows: int, live: int | None = None, *, size: int = 0, engine: str = "gist"
) -> OldShard:
    bytes_ = size or 8 * KB + rows * 16 * KB
    return OldShard(shard_id, "", rows, rows if live is None else live, bytes_, "", engine)


def shards(*rows: int) -> list[OldShard]:
    return [shard(at, count) for at, count in enumerate(rows, start=1)]


def chosen_rows(candidates: Sequence[OldShard], *, eager: bool = False) -> list[int]:
    return [one.rows for one in choose(candidates, STORE, eager=eager)]


def test_a_month_of_one_arrival_a_second_fills_its_shards() -> None:
    """Each is sealed alone, and the janitor merges each minute."""
    arrivals = [[shard(at, 1) for at in range(60)] for _ in range(2)]
    left: list[OldShard] = []
    full = copies = most = 0
    minutes = 30 * 24 * 60
    for minute in range(minutes):
        left += arrivals[minute % 2]
        most = max(most, len(left))
        while chosen := choose(left, STORE):
            these = set(map(id, chosen))
            left = [one for one in left if id(one) not in these]
            made = merged(chosen, -1)
            copies += made.rows
            if made.rows < FULL * STORE.shard_rows:
                left.append(made)
            else:
                full += 1
    images = minutes * 60
    assert full == images // STORE.shard_rows
    assert len(left) <= 32
    assert most <= 100
    assert copies / images < 3, (
        "each vector is written at most four times: when it is made, and by three merges"
    )


def test_as_many_as_one_level_needs() -> None:
    assert chosen_rows(shards(*[1] * 7)) == []
    assert chosen_rows(shards(*[1] * 8)) == [1] * 8
    assert chosen_rows(shards(*[1] * 7, *[60] * 7)) == []
    assert len(choose(shards(*[1] * 3000), STORE)) == 512


def test_no_more_is_read_than_is_needed() -> None:
    endless = (shard(at, 1) for at in itertools.count(1))
    assert len(choose(endless, STORE)) == 512


def test_a_large_merge_waits_for_a_full_shard() -> None:
    waiting = [480] * 8
    assert chosen_rows(shards(*waiting, 60, 60)) == []
    assert chosen_rows(shards(*waiting, *[60] * 4, *[1] * 20)) == [*waiting, *[60] * 4, *[1] * 16]


def test_those_that_make_no_full_shard_are_merged_as_they_fit() -> None:
    assert chosen_rows(shards(*[1400] * 7)) == []
    assert chosen_rows(shards(*[1400] * 8)) == [1400] * 2


def test_shards_that_are_more_than_half_full_hide_no_small_ones() -> None:
    """They are left alone, however many there are."""
    assert chosen_rows(shards(*[3000] * 1000)) == []
    assert chosen_rows(shards(*[3000] * 1000, *[1] * 8)) == [1] * 8


def test_eager_merges_whatever_fits() -> None:
    assert chosen_rows(shards(1, 2), eager=True) == [2, 1]
    assert chosen_rows(shards(2000, 1, 1500, 1400, 700), eager=True) == [2000, 1500, 1]
    assert chosen_rows(shards(3000, 1), eager=True) == []
    assert chosen_rows(shards(1), eager=True) == []


def test_half_dead_shards_are_rewritten_alone_where_that_frees_much() -> None:
    small, large = shard(1, 100, 50), shard(2, 4096, 2048)
    assert choose([small], STORE) == []
    assert choose([small, large], STORE) == [large]
    empty = shard(3, 1, 0)
    assert choose([small, empty], STORE) == [empty]
    assert merged([empty], -1).rows == 0


def test_engines_are_kept_apart() -> None:
    mixed = [shard(at, 1, engine="caffe" if at % 2 else "onnxruntime") for at in range(1, 15)]
    assert choose(mixed, STORE) == []
    assert {one.engine for one in choose([*mixed, shard(15, 1, engine="caffe")], STORE)} == {"caffe"}


def test_large_vectors_fill_a_shard_by_bytes() -> None:
    many = [shard(at, 1, size=STORE.shard_bytes // 16) for at in range(1, 33)]
    assert [len(some) for some in plan(many, STORE)] == [16, 16]


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 1)), max_size=60),
    st.booleans(),
    st.sampled_from([64, 4096]),
)
def test_a_plan_ends_and_makes_no_shard_too_large(
    sizes: list[tuple[int, float]], eager: bool, shard_rows: int
) -> None:
    store = STORE.model_copy(update={"shard_rows": shard_rows})
    candidates = [shard(at, rows, int(rows * live)) for at, (rows, live) in enumerate(sizes, start=1)]
    merges = list(plan(candidates, store, eager=eager))
    assert len(merges) < 2 * max(len(candidates), 1)
    for chosen in merges:
        made = merged(chosen, -1)
        assert made.rows <= store.shard_rows or len(chosen) == 1
        assert len(chosen) > 1 or made.rows * 2 <= chosen[0].rows
