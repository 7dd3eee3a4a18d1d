"""Files in the store that no row names: what a worker left behind that died between writing and settling.

Order is the safety argument: first the lease has ended (an ended lease can commit no more), then no shard
row names the file, then it is removed. A file of a lease that the catalog does not know is reported only:
the catalog may be a restored backup, and the file may hold the only copy of its vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, leases, stats
from featd.catalog.leases import Lease
from featd.shards.layout import ShardName
from featd.shards.store import shards_folder

log = logs.get("janitor")

BATCH_FILES = 500


@dataclass(slots=True)
class Leftovers:
    """What a look through the store found."""

    removed: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)


def remove_leftovers(catalog: sa.Engine, store: Path) -> Leftovers:
    """Look through the store once; remove what ended leases left behind and report what is of nobody."""
    result = Leftovers()
    over: dict[Lease, bool | None] = {}
    files = _files(shards_folder(store))
    while some := list(islice(files, BATCH_FILES)):
        with connect.reading(catalog) as conn:
            for _, name in some:
                lease = Lease(name.lease_id, name.token)
                if not over.get(lease):
                    over[lease] = leases.is_over(conn, lease)
        # A new transaction: what an ended lease committed before it ended is seen now.
        with connect.reading(catalog) as conn:
            known = stats.known_shards(conn, [path.name for path, _ in some])
        for path, name in some:
            if path.name not in known:
                _judge(path, over[Lease(name.lease_id, name.token)], result)
    return result


def _judge(path: Path, over: bool | None, result: Leftovers) -> None:
    """A file that no shard row names: `over` says whether its lease has ended (None: there is no such lease)."""
    if over is None:
        result.unknown.append(path)
        log.warning(
            "unknown_file",
            "no lease of this catalog made it; it is left alone (was the catalog restored from a backup?)",
            file=path,
        )
    elif over:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "not_removed", "a file of an ended lease stays behind", file=path, error=error.strerror
            )
            return
        result.removed.append(path)
        log.info("removed", "its lease ended before it was settled; its images are done again", file=path)


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
    except OSError as error:
        log.warning("unreadable", "leftovers in it are not looked for", folder=folder, error=error.strerror)
        return []
