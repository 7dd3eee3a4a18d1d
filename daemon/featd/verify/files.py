"""The files of the store against the rows of shards: what the catalog does not know, and what was left unfinished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, leases, stats
from featd.errors import reason
from featd.progress import Advance
from featd.shards.layout import ShardName
from featd.shards.store import shards_folder, unknown_folder
from featd.states import Lease
from featd.verify.report import Report

BATCH_FILES = 500


def check(catalog: sa.Engine, store: Path, report: Report, advance: Advance) -> None:
    """Add to `report` the files that no row of a shard names. Those of workers with a lease are in the making."""
    files = _files(store, report)
    seen = 0
    while some := list(islice(files, BATCH_FILES)):
        seen += len(some)
        advance("looking at files", seen, 0)
        names = [(path, ShardName.parse(path.name) or ShardName.parse_part(path.name)) for path in some]
        with connect.reading(catalog) as conn:
            over = {
                path: not leases.may_settle(conn, Lease(name.lease_id, name.token))
                for path, name in names
                if name is not None
            }
        # A new transaction sees everything that an ended lease committed before it ended.
        with connect.reading(catalog) as conn:
            known = stats.known_shards(conn, [path.name for path in some])
        for path, name in names:
            place = str(path.relative_to(store))
            if name is None:
                report.foreign.append(place)
            elif over[path] and path.name not in known and path.exists():
                (report.unknown if ShardName.parse(path.name) else report.parts).append(place)
    for path in aside(store, report):
        with connect.reading(catalog) as conn:
            report.kept_aside += not stats.known_shards(conn, [path.name])


def aside(store: Path, report: Report) -> Iterator[Path]:
    """The shards that were moved away because the catalog did not know them."""
    for entry in _entries(store, unknown_folder(store), report):
        if ShardName.parse(entry.name) is not None and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _files(store: Path, report: Report) -> Iterator[Path]:
    for day in _entries(store, shards_folder(store), report):
        if not day.is_dir(follow_symlinks=False):
            yield Path(day.path)
            continue
        yield from (Path(entry.path) for entry in _entries(store, Path(day.path), report))


def _entries(store: Path, folder: Path, report: Report) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        report.unreadable.append((str(folder.relative_to(store)), reason(error)))
        return []
