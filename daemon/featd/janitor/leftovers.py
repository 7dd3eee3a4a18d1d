"""Files in the store that no row names: leftovers of workers that died between writing and settling.

The order makes it safe: first the lease has ended (an ended lease cannot commit any more), then no shard row names
the file, then it is removed. A file of a lease that the catalog does not know is only reported: the catalog may be a
restored backup, and the file may hold the only copy of its vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, leases, stats
from featd.shards.layout import ShardName
from featd.shards.store import shards_folder
from featd.states import Lease

log = logs.get("janitor")

BATCH_FILES = 500


def remove_leftovers(catalog: sa.Engine, store: Path) -> Iterator[list[Path]]:
    """Go through the store once, some files at each step: remove leftovers of ended leases and report files of unknown
    leases. Yields what a step removed."""
    over: dict[Lease, bool | None] = {}
    files = _files(shards_folder(store))
    while some := list(islice(files, BATCH_FILES)):
        with connect.reading(catalog) as conn:
            for _, name in some:
                lease = Lease(name.lease_id, name.token)
                if not over.get(lease):
                    over[lease] = leases.is_over(conn, lease)
        # A new transaction sees everything that an ended lease committed before it ended.
        with connect.reading(catalog) as conn:
            known = stats.known_shards(conn, [path.name for path, _ in some])
        left = [(path, name) for path, name in some if path.name not in known]
        yield [path for path, name in left if _judge(path, over[Lease(name.lease_id, name.token)])]


def _judge(path: Path, over: bool | None) -> bool:
    """Handle a file that no shard row names; whether it was removed. `over`: whether its lease has ended; None where
    there is no such lease."""
    if over is None:
        log.warning(
            "unknown_file_found",
            "a file in the store belongs to no lease of this catalog; leaving it (was the catalog restored?)",
            file=path,
        )
    elif over:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "leftover_not_removed",
                "cannot delete a file of an ended lease; trying again at the next look",
                file=path,
                error=error.strerror,
            )
            return False
        log.info(
            "leftover_removed",
            "removed a file that was not settled before its lease ended; its images are done again",
            file=path,
        )
    return bool(over)


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
        log.warning(
            "store_folder_unreadable",
            "cannot read a folder of the store; leftovers in it stay",
            folder=folder,
            error=error.strerror,
        )
        return []
