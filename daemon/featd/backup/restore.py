"""Restoring a backup onto a machine that has neither the catalog nor the store.

The store gets its marker last, so that featd does not start with a part of it. A restore that was killed goes on where
it ended when it is run again: the store has a note of it until then.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

from featd.backup.bring import Advance, Brought, bring_all
from featd.backup.folder import CATALOG, CONFIG, Manifest, locked, read_manifest
from featd.catalog import connect, counters, dump, migrate, pairing
from featd.crash_points import CrashPoint, crash_point
from featd.errors import (
    ConfigError,
    FeatdError,
    NothingMatchedError,
    SchemaError,
    StoreUnavailableError,
    reason,
)
from featd.shards.atomic import make_folder, write_atomically
from featd.shards.store import RESTORING, is_store, shards_folder
from featd.states import RetryPolicy, State


@dataclass(frozen=True, slots=True)
class Restored:
    """What is there now. `lost`: shards that images name and that neither backup nor store has."""

    done: int
    shards: int
    brought: Brought
    lost: int


def find_backup(folder: Path) -> Manifest:
    """The backup in `folder`. NothingMatchedError where there is none; SchemaError where it is of a newer featd."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise NothingMatchedError(
            f"{folder}: no backup there (featd-backup.json is missing): is its disk mounted?"
        )
    if manifest.copy is None:
        raise NothingMatchedError(
            f"{folder}: the first backup into this folder did not end: there is none yet"
        )
    if not migrate.is_known(manifest.schema):
        raise SchemaError(
            f"{folder}: the catalog in this backup has schema {manifest.schema}, which is newer than this featd knows"
            f" ({migrate.head()}): install a newer featd"
        )
    return manifest


def config_in(folder: Path, manifest: Manifest) -> bytes:
    """The content of the configuration in the backup. OSError."""
    return (folder / str(manifest.copy) / CONFIG).read_bytes()


def restore(folder: Path, catalog: sa.Engine, store: Path, policy: RetryPolicy, advance: Advance) -> Restored:
    """Make catalog and store from the backup in `folder`, and let them begin a new history together. FeatdError where
    one of them exists already."""
    with locked(folder, writing=False):
        manifest = find_backup(folder)
        if manifest.database != dump.kind(catalog):
            raise ConfigError(
                f"{folder} has a catalog of {manifest.database}, and catalog.url names one of {dump.kind(catalog)}"
            )
        note = json.dumps(asdict(manifest)).encode()
        goes_on = _goes_on(store, note)
        if not dump.is_empty(catalog):
            if not goes_on or dump.instance_of(catalog) != manifest.instance:
                raise FeatdError(
                    f"the catalog {connect.shown_url(catalog)} exists already, and a restore replaces none: name"
                    " another in catalog.url, or move this one away"
                )
            return _restore(folder, catalog, store, policy, advance)
        try:
            make_folder(store)
            write_atomically(store / RESTORING, note)
        except OSError as error:
            raise StoreUnavailableError(f"{store}: cannot create the store: {reason(error)}") from error
        crash_point(CrashPoint.RESTORE_BEGUN)
        dump.load(catalog, folder / str(manifest.copy) / CATALOG)
        return _restore(folder, catalog, store, policy, advance)


def _goes_on(store: Path, note: bytes) -> bool:
    """Whether this restore has begun already. FeatdError where the store holds anything else."""
    if is_store(store):
        raise FeatdError(
            f"{store} is a store already, and a restore replaces none: name another in store.path"
        )
    found = {entry.name for entry in store.iterdir()} - {"lost+found"} if store.exists() else set()
    if RESTORING in found:
        if (store / RESTORING).read_bytes() != note:
            raise FeatdError(
                f"{store}: another backup was being restored there: empty the folder, then try again"
            )
        return True
    if found:
        raise FeatdError(f"{store} is not empty: empty it, or name another folder in store.path")
    return False


def _restore(
    folder: Path, catalog: sa.Engine, store: Path, policy: RetryPolicy, advance: Advance
) -> Restored:
    """The catalog is there: the rest."""
    crash_point(CrashPoint.RESTORE_CATALOG)
    migrate.upgrade(catalog, create=False)
    with connect.reading(catalog) as conn:
        dump_shards, done = dump.read_shards(conn), counters.counts(conn)[State.DONE]
    brought = bring_all(dump_shards, folder, store, advance)
    make_folder(shards_folder(store))
    crash_point(CrashPoint.RESTORE_SHARDS)
    _, lost = pairing.begin_anew(catalog, store, policy)
    crash_point(CrashPoint.RESTORE_ENDED)
    (store / RESTORING).unlink()
    return Restored(done, len(dump_shards) - len(brought.faulty), brought, lost)
