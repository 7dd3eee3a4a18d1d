"""Files in the store that no row names: what a worker left behind that died between writing and settling.

Order is the safety argument: first the lease has ended (an ended lease can commit no more), then no shard
row names the file, then it is removed. A file of a lease that the catalog does not know is reported only:
the catalog may be a restored backup, and the file may hold the only copy of its vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, leases, stats
from featd.catalog.leases import Lease
from featd.shards.layout import ShardName
from featd.shards.store import shards_folder

log = logs.get("janitor")


@dataclass(slots=True)
class Leftovers:
    """What a look through the store found."""

    removed: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)


def remove_leftovers(catalog: sa.Engine, store: Path) -> Leftovers:
    """Look through the store once; remove what ended leases left behind and report what is of nobody."""
    result = Leftovers()
    for path, name in _files(shards_folder(store)):
        with connect.reading(catalog) as conn:
            over = leases.is_over(conn, Lease(name.lease_id, name.token))
        if over is False:
            continue
        with connect.reading(catalog) as conn:
            known = bool(stats.known_shards(conn, [path.name]))
        if known:
            continue
        if over is None:
            result.unknown.append(path)
            log.warning(
                "unknown_file",
                "no lease of this catalog made it; it is left alone (was the catalog restored from a backup?)",
                file=path,
            )
            continue
        path.unlink(missing_ok=True)
        result.removed.append(path)
        log.info("removed", "its lease ended before it was settled; its images are done again", file=path)
    return result


def _files(folder: Path) -> Iterator[tuple[Path, ShardName]]:
    """Every file that has a shard's name, sealed or not."""
    for day in _entries(folder):
        if not day.is_dir(follow_symlinks=False):
            continue
        for entry in _entries(Path(day.path)):
            name = ShardName.parse(entry.name) or ShardName.parse_part(entry.name)
            if name is not None and entry.is_file(follow_symlinks=False):
                yield Path(entry.path), name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
