"""What compaction merges next: a function of the shards that may be merged, and nothing else.

Shards of about the same size are merged, FAN_IN at least, so that each vector is copied only a few times. Merges that
would make more than HALF a shard, which is left alone from then on, wait until there is enough for a full one: then a
store has hardly more shards than its vectors fill.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from featd.catalog.compact import OldShard
from featd.config import StoreConfig

FAN_IN = 8
"""So many shards of a level make one of the next."""
HALF = 0.5
"""Shards that have more than this part of shard_rows or shard_bytes are left alone."""
FULL = 0.9
"""A large merge is worth it where it makes a shard that is as full as this."""
MOST_FILES = 512
"""That are merged at once."""
DEAD_BYTES = 1024 * 1024
"""A shard of which half or more is dead is rewritten by itself where that frees so much."""


class _Sized(NamedTuple):
    fill: float
    """How full a shard of what is left of this one would be."""
    shard: OldShard


def choose(candidates: Iterable[OldShard], store: StoreConfig, *, eager: bool = False) -> list[OldShard]:
    """Those of `candidates`, in the order of their ids, to merge into one shard next; empty where nothing is worth it.

    eager: any two that fit into one shard are worth it. No more of `candidates` is read than is needed.
    """
    engines: dict[str, dict[int, list[_Sized]]] = {}
    for shard in candidates:
        if _is_worth_it_alone(shard):
            return [shard]
        one = _Sized(_fill(shard, store), shard)
        if one.fill > HALF:
            continue
        level = engines.setdefault(shard.engine, {}).setdefault(_level(one.fill), [])
        level.append(one)
        if len(level) == MOST_FILES:
            break
    for levels in engines.values():
        if chosen := _of_one_engine(levels, eager):
            return [one.shard for one in chosen]
    return []


def plan(
    candidates: Iterable[OldShard], store: StoreConfig, *, eager: bool = False
) -> Iterator[list[OldShard]]:
    """What would be chosen one after the other, if nothing else happened meanwhile. What becomes of a merge may be
    merged again; its id is negative."""
    left = {shard.id: shard for shard in candidates}
    for made_id in itertools.count(-1, -1):
        if not (chosen := choose(left.values(), store, eager=eager)):
            return
        yield chosen
        for shard in chosen:
            del left[shard.id]
        if (made := merged(chosen, made_id)).rows:
            left[made_id] = made


def merged(chosen: Sequence[OldShard], made_id: int) -> OldShard:
    """What becomes of `chosen`, without a name; `bytes` are estimated."""
    rows = sum(shard.live_rows for shard in chosen)
    size = sum(shard.bytes * shard.live_rows // max(shard.rows, 1) for shard in chosen)
    return OldShard(made_id, "", rows, rows, size, "", chosen[0].engine)


def _of_one_engine(levels: dict[int, list[_Sized]], eager: bool) -> list[_Sized]:
    every = sorted((one for level in levels.values() for one in level), key=lambda one: one.fill)
    enough = sum(one.fill for one in every) >= 1
    if eager or enough:
        packed = _that_fit(reversed(every), 1.0)  # the largest first: the small ones fill what is left
        if len(packed) > 1 and (eager or sum(one.fill for one in packed) >= FULL):
            return packed
    # Where there is enough for a full shard and none can be made, those are merged that fit.
    room, least = (1.0, 2) if enough else (HALF, FAN_IN)
    # The smallest first: they are the most, and what becomes of them may be merged again.
    for _, level in sorted(levels.items(), reverse=True):
        if len(level) >= FAN_IN:
            some = _that_fit(sorted(level, key=lambda one: one.fill), room)
            if len(some) >= least:
                return some
    return []


def _that_fit(ordered: Iterable[_Sized], room: float) -> list[_Sized]:
    some: list[_Sized] = []
    for one in ordered:
        if one.fill <= room and len(some) < MOST_FILES:
            room -= one.fill
            some.append(one)
    return some


def _fill(shard: OldShard, store: StoreConfig) -> float:
    left = shard.bytes * shard.live_rows / max(shard.rows, 1)
    return max(shard.live_rows / store.shard_rows, left / store.shard_bytes)


def _level(fill: float) -> int:
    return int(-math.log(max(fill, 1e-9), FAN_IN))


def _is_worth_it_alone(shard: OldShard) -> bool:
    dead = shard.rows - shard.live_rows
    return shard.live_rows == 0 or (dead * 2 >= shard.rows and shard.bytes * dead >= DEAD_BYTES * shard.rows)
