"""Backing up while featd runs: first a copy of the catalog, then the shards that this copy names.

A shard is on stable storage before a catalog names it, and never changes. So every shard of the copy is there when
its turn comes, unless it is damaged, or compaction has moved its rows meanwhile: then a newer copy is made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd import clock
from featd.backup.bring import Advance, Brought, bring_all
from featd.backup.folder import (
    CATALOG,
    CONFIG,
    COPY,
    MANIFEST,
    Manifest,
    locked,
    read_manifest,
    write_manifest,
)
from featd.catalog import connect, dump, migrate, pairing
from featd.catalog.dump import Dumped
from featd.crash_points import CrashPoint, crash_point
from featd.errors import FeatdError, StoreUnavailableError, reason
from featd.shards.atomic import make_folder, write_atomically
from featd.shards.store import shards_folder

ROUNDS = 3
"""Copies of the catalog that are made where compaction outruns the backup."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds now, and how much of it is new (shards and their bytes)."""

    done: int
    shards: int
    new: int
    bytes: int
    removed: int
    brought: Brought


def back_up(catalog: sa.Engine, store: Path, config: Path, folder: Path, advance: Advance) -> BackedUp:
    """Make `folder` a backup of the catalog, its store and its configuration, or bring it up to date. If it is killed,
    what was backed up before counts. FeatdError; StoreUnavailableError where `folder` cannot be written."""
    key = pairing.check(catalog, store, writable=False)
    _refuse_place(folder, store)
    try:
        if not folder.is_dir():
            make_folder(folder)
        with locked(folder, writing=True):
            before = _begin(folder, Manifest(key.instance, dump.kind(catalog), migrate.head()))
            return _back_up(catalog, store, config, folder, before, advance)
    except OSError as error:
        raise StoreUnavailableError(f"{error.filename or folder}: {reason(error)}") from error


def _refuse_place(folder: Path, store: Path) -> None:
    if folder.resolve().is_relative_to(store.resolve()):
        raise FeatdError(f"{folder} is in the store: name another folder, best on another disk")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise FeatdError(f"{folder.parent}: no such folder: is the disk of the backups mounted?")


def _begin(folder: Path, mine: Manifest) -> Manifest:
    """The backup that is there, or the beginning of one. FeatdError where the folder holds something else."""
    found = read_manifest(folder)
    if found is None:
        if any(entry.name != "lost+found" for entry in folder.iterdir() if not _is_ours(entry)):
            raise FeatdError(f"{folder} is neither empty nor a backup: name another folder")
        write_manifest(folder, mine)
        crash_point(CrashPoint.BACKUP_BEGUN)
        return mine
    if found.instance != mine.instance:
        raise FeatdError(
            f"{folder} is the backup of another instance ({found.instance}): name a folder of its own for this one"
        )
    return found


def _is_ours(entry: Path) -> bool:
    """Of the files that are there before, or while, the manifest is written for the first time."""
    return entry.name.startswith(MANIFEST.removesuffix(".json"))


def _back_up(
    catalog: sa.Engine, store: Path, config: Path, folder: Path, before: Manifest, advance: Advance
) -> BackedUp:
    _remove_copies(folder, keep=before.copy)
    new = size = 0
    for _ in range(ROUNDS):
        created_at = clock.utcnow()
        copy = folder / f"{COPY}{created_at:%Y%m%dT%H%M%S%f}"
        dumped = dump.dump(catalog, copy / CATALOG)
        crash_point(CrashPoint.BACKUP_CATALOG)
        brought = bring_all(dumped.shards, store, folder, advance)
        new, size = new + brought.new, size + brought.bytes
        if not _outrun(catalog, brought):
            break
    write_atomically(copy / CONFIG, config.read_bytes())
    crash_point(CrashPoint.BACKUP_COMPLETE)
    write_manifest(
        folder,
        Manifest(before.instance, dump.kind(catalog), migrate.head(), copy.name, created_at.isoformat()),
    )
    crash_point(CrashPoint.BACKUP_CURRENT)
    _remove_copies(folder, keep=copy.name)
    removed = _remove_shards(folder, dumped)
    return BackedUp(dumped.done, len(dumped.shards) - len(brought.faulty), new, size, removed, brought)


def _outrun(catalog: sa.Engine, brought: Brought) -> bool:
    """Whether a shard that is missing is one that images have left since the catalog was copied."""
    if not brought.missing:
        return False
    with connect.reading(catalog) as conn:
        return len(dump.still_named(conn, brought.missing)) < len(brought.missing)


def _remove_copies(folder: Path, keep: str | None) -> None:
    """Remove copies of the catalog that do not count: older ones, and those of backups that were killed."""
    for copy in folder.glob(f"{COPY}*"):
        if copy.name != keep:
            shutil.rmtree(copy)


def _remove_shards(folder: Path, dumped: Dumped) -> int:
    """Remove the shards that the copy does not name, and unfinished ones; returns how many shards."""
    named = {shard.path for shard in dumped.shards}
    removed = 0
    for day, _, names in os.walk(shards_folder(folder)):
        for name in names:
            file = Path(day) / name
            if str(file.relative_to(folder)) not in named:
                file.unlink()
                removed += file.suffix == ".h5"
                crash_point(CrashPoint.BACKUP_PRUNED)
        with contextlib.suppress(OSError):  # not empty
            Path(day).rmdir()
    return removed
