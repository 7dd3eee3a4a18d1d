"""Putting right what a check has found, beside a running featd. No file is deleted, and no vector is made here: images
whose vectors are lost become pending. If it is interrupted, it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, pairing
from featd.catalog import repair as catalog_repair
from featd.catalog import verify as catalog_verify
from featd.config import RootConfig
from featd.progress import Advance
from featd.shards.atomic import move_file
from featd.shards.checksum import checksum
from featd.shards.store import unknown_folder
from featd.shards.verify import Verified
from featd.verify import adopt
from featd.verify.report import Report, ShardFault

MANY = 0.1
"""Part of all shards above which a repair wants to be asked for twice: perhaps a disk is away."""


@dataclass(slots=True)
class Repaired:
    """What was done. `images`: pending now. `adopted`: images that have their vector from an unknown shard;
    `not_adopted`: unknown shard -> why it was not taken."""

    returned: int = 0
    images: int = 0
    shards: int = 0
    adopted: int = 0
    adopted_shards: int = 0
    not_adopted: dict[str, str] = field(default_factory=dict)
    counters: int = 0


def wants_yes(catalog: sa.Engine, report: Report) -> bool:
    """Whether so many shards are lost that a person should look first."""
    with connect.reading(catalog) as conn:
        total, _ = catalog_verify.totals(conn)
    return len(report.lost) > MANY * total


def repair(
    catalog: sa.Engine, store: Path, report: Report, roots: Sequence[RootConfig], advance: Advance
) -> Repaired:
    """Put right what `report` has. StoreUnavailableError or OtherStoreError; OSError where a shard cannot be moved."""
    pairing.check(catalog, store)
    done = Repaired()
    lost: list[ShardFault] = []
    for fault in report.shard_faults:
        if fault.aside and _bring_back(store, fault):
            done.returned += 1
        elif fault.fault.lost and _is_lost(store, fault):
            lost.append(fault)
    if lost:
        pairing.check(catalog, store)  # else the store may have been unmounted meanwhile
        ids = {fault.id for fault in lost}
        for some in catalog_verify.walk_naming(catalog, ids):
            advance("forgetting vectors", some[-1][0], 0)
            done.images += connect.transact(catalog, catalog_repair.forget_vectors, dict(some))
        done.shards = len(ids)
    rows = {fault.image_id: fault.shard_id for fault in report.row_faults}
    for at in range(0, len(rows), catalog_verify.IMAGES):
        some_rows = dict(list(rows.items())[at : at + catalog_verify.IMAGES])
        done.images += connect.transact(catalog, catalog_repair.forget_vectors, some_rows)
    lacked = catalog_repair.mend_counts(catalog)
    done.counters = len(lacked.states) + len(lacked.live_rows)
    if lost:
        connect.transact(catalog, catalog_repair.forget_shards, {fault.id for fault in lost})
    adopt.adopt_all(catalog, store, report, roots, done, advance)
    return done


def _is_lost(store: Path, fault: ShardFault) -> bool:
    """Whether it still is: the check may have been hours ago."""
    now = Verified().fault(store / fault.path, fault.checksum)
    return now is not None and now.lost


def _bring_back(store: Path, fault: ShardFault) -> bool:
    """Move a shard back that is kept aside; False where that one is damaged as well."""
    path, target = unknown_folder(store) / Path(fault.path).name, store / fault.path
    try:
        if target.exists() or checksum(path) != fault.checksum:
            return False
        move_file(path, target)
    except FileNotFoundError:
        return False  # the janitor was quicker, or it is gone
    return True
