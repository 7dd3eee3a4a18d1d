"""Files in the store that no row names: leftovers of workers that died between writing and settling, and shards that a
restored catalog does not know.

The order makes it safe: first the lease has ended (an ended lease cannot commit any more), then no shard row names
the file. Then an unfinished file is removed; a sealed shard is moved to `<store>/unknown/`, since the catalog may be
wrong: it comes back where the catalog knows it again, and is removed only after keep_unknown_days.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, leases, stats, values
from featd.shards.atomic import move_file
from featd.shards.layout import ShardName
from featd.shards.store import free_bytes, shards_folder, unknown_folder
from featd.states import Lease

log = logs.get("janitor")

BATCH_FILES = 500
DAY_SECONDS = 86_400


class Leftovers:
    """What the janitor does about them. A look is a walk of the whole store, some files at each step."""

    def __init__(self, catalog: sa.Engine, store: Path, keep_unknown_days: float, min_free: int) -> None:
        self._catalog = catalog
        self._store = store
        self._unknown = unknown_folder(store)
        self._keep_seconds = keep_unknown_days * DAY_SECONDS
        self._min_free = min_free

    def look(self) -> Generator[list[Path]]:
        """One look, in steps. Yields what a step has taken out of the store's shards."""
        yield from self._look_at_unknown()
        over: dict[Lease, bool] = {}
        files = shard_files(shards_folder(self._store))
        while some := list(islice(files, BATCH_FILES)):
            with connect.reading(self._catalog) as conn:
                for _, name in some:
                    lease = Lease(name.lease_id, name.token)
                    if not over.get(lease):
                        over[lease] = leases.is_over(conn, lease)
            # A new transaction sees everything that an ended lease committed before it ended.
            with connect.reading(self._catalog) as conn:
                known = stats.known_shards(conn, [path.name for path, _ in some])
            yield []
            for path, name in some:
                if over[Lease(name.lease_id, name.token)] and path.name not in known and self._take_out(path):
                    yield [path]  # each takes some writes to the disk

    def _take_out(self, path: Path) -> bool:
        """Remove an unfinished file, move a sealed one away; whether that worked."""
        try:
            if ShardName.parse(path.name) is None:
                path.unlink(missing_ok=True)
                log.info(
                    "leftover_removed",
                    "removed an unfinished file of a worker that died; its images are done again",
                    file=path,
                )
            else:
                move_file(path, self._unknown / path.name)
                log.warning(
                    "unknown_moved",
                    "moved away a shard that the catalog does not know; it comes back if the catalog knows it again",
                    file=path,
                    to=self._unknown,
                    kept_days=self._keep_seconds / DAY_SECONDS,
                )
        except OSError as error:
            log.warning(
                "leftover_not_removed",
                "cannot move or delete a file that no row names; trying again at the next look",
                file=path,
                error=error.strerror,
            )
            return False
        return True

    # Those that were moved away

    def _look_at_unknown(self) -> Iterator[list[Path]]:
        """Bring back what the catalog knows by now; remove what is old, or any while the disk is nearly full. Then tell
        how many are left."""
        files = size = 0
        for some in shards_in(self._unknown):
            with connect.reading(self._catalog) as conn:
                known = stats.known_shards(conn, [name.file_name for name in some])
            yield []
            for name in some:
                path = self._unknown / name.file_name
                try:
                    here = path.stat()
                    if name.file_name in known and self._bring_back(path, self._store / name.relative_path):
                        yield []
                    elif not self._forget(path, here.st_ctime):
                        files, size = files + 1, size + here.st_size
                except OSError as error:
                    log.warning(
                        "unknown_left",
                        "cannot move or delete a shard that was moved away; trying again at the next look",
                        file=path,
                        error=error.strerror,
                    )
        self._tell({"files": files, "bytes": size})

    def _bring_back(self, path: Path, target: Path) -> bool:
        if target.exists():
            return False
        move_file(path, target)
        log.warning(
            "unknown_returned", "the catalog knows a shard again; it is back in its place", file=target
        )
        return True

    def _forget(self, path: Path, moved_at: float) -> bool:
        """Remove it where that is due. A rename sets the ctime: it was moved here then."""
        if clock.utcnow().timestamp() - moved_at > self._keep_seconds:
            path.unlink()
            log.info("unknown_removed", "removed a shard that the catalog has not known for long", file=path)
            return True
        if free_bytes(self._store) < self._min_free:
            path.unlink()
            log.warning(
                "unknown_removed_early",
                "removed a shard that the catalog does not know, because the disk is nearly full",
                file=path,
                min_free=self._min_free,
            )
            return True
        return False

    def _tell(self, told: dict[str, int]) -> None:
        """What status shows."""
        with connect.reading(self._catalog) as conn:
            before = values.get_value(conn, stats.UNKNOWN)
        if told != (before or stats.NO_UNKNOWN):
            connect.transact(self._catalog, values.set_value, stats.UNKNOWN, told)


def shards_in(folder: Path) -> Iterator[list[ShardName]]:
    """The shards of one folder, some at a time, oldest first among these."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        while some := list(islice(entries, BATCH_FILES)):
            names = [ShardName.parse(one.name) for one in some if one.is_file(follow_symlinks=False)]
            yield sorted(name for name in names if name is not None)


def shard_files(folder: Path) -> Iterator[tuple[Path, ShardName]]:
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
