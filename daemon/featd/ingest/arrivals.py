"""Arrivals: files that the watch reported become rows as soon as they are complete; those that vanished become gone."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, enqueue
from featd.catalog.enqueue import Enqueued, FoundFile
from featd.config import RootConfig
from featd.ingest.hints import MAX_PATHS, Hint
from featd.ingest.scan import VANISHED, enqueue_files, is_missing
from featd.ingest.settling import Settling
from featd.ingest.walk import found_file
from featd.paths import from_catalog, mtime_of, to_catalog
from featd.roots import RootState, root_state
from featd.states import PRIORITY_ARRIVAL

BATCH_FILES = 2000
PAUSE_SECONDS = 0.03
"""Between two transactions: files that arrive meanwhile share the next one."""


@dataclass(slots=True)
class Arrived:
    """What became of the paths that were checked. `offline`: nothing, because the root is not there."""

    enqueued: Enqueued = field(default_factory=Enqueued)
    gone: int = 0
    offline: bool = False


class Arrivals:
    """The arrivals of one root."""

    def __init__(self, catalog: sa.Engine, root: RootConfig, *, max_files: int = MAX_PATHS) -> None:
        self._catalog = catalog
        self._root = root
        self._settling = Settling(root.settle_seconds, max_files=max_files)
        self._pause_until = 0.0

    def hear(self, path: bytes, hint: Hint, now: float) -> bool:
        """Check this file when it may be complete. False where too many are waiting already."""
        if self._settling.full and path not in self._settling:
            return False
        self._settling.hear(path, hint, now)
        return True

    def take_young(self, file: FoundFile) -> bool:
        """Take over a file that a scan found and that changed a moment ago."""
        return self._settling.take_young(from_catalog(file.path), file.size, file.mtime_ns, clock.monotonic())

    def step(self, now: float) -> Arrived:
        """Check the files that are due: complete ones are enqueued ahead of the backlog, missing ones become gone."""
        arrived = Arrived()
        if now < self._pause_until:
            return arrived
        due = self._settling.due(now, BATCH_FILES)
        if not due:
            return arrived
        try:
            self._look(due, now, arrived)
        except BaseException:
            self._settling.again(due, now)
            raise
        return arrived

    def next_due(self) -> float | None:
        due = self._settling.next_due()
        return None if due is None else max(due, self._pause_until)

    def _look(self, due: list[bytes], now: float, arrived: Arrived) -> None:
        try:
            root_fd = os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._settling.clear()  # the scan after the root is back sees them all
            arrived.offline = True
            return
        try:
            found, missing, over = self._sort(root_fd, due, now)
            if missing:  # first, so that a worker that meets a moved file finds its old name gone
                arrived.gone = self._mark_gone(root_fd, missing)
            if found:
                arrived.enqueued = enqueue_files(
                    self._catalog, self._root, found, PRIORITY_ARRIVAL, heard=True
                )
        finally:
            os.close(root_fd)
        for path in over:
            self._settling.drop(path)
        if found or arrived.gone:
            self._pause_until = clock.monotonic() + PAUSE_SECONDS

    def _sort(
        self, root_fd: int, due: list[bytes], now: float
    ) -> tuple[list[FoundFile], list[bytes], list[bytes]]:
        """The complete files, the paths without a file, and all paths that need not be checked again."""
        found: list[FoundFile] = []
        missing: list[bytes] = []
        over: list[bytes] = []
        for path in due:
            now_ns = int(clock.utcnow().timestamp() * 1e9)
            try:
                seen = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
            except OSError:
                seen = None
            if seen is None or not stat.S_ISREG(seen.st_mode):
                missing.append(path)
                over.append(path)
            elif self._settling.looked_at(path, seen.st_size, mtime_of(seen), now, now_ns):
                found.append(found_file(to_catalog(path), seen))
                over.append(path)
        return found, missing, over

    def _mark_gone(self, root_fd: int, paths: list[bytes]) -> int:
        """Check those that have a row again. Only a file that does not exist (ENOENT) in an online root is gone."""
        with connect.reading(self._catalog) as conn:
            known = enqueue.known_at(conn, self._root.key, [to_catalog(path) for path in paths])
        ids = [file.id for file in known if is_missing(root_fd, from_catalog(file.path), False)]
        if not ids or root_state(self._root.path) is not RootState.ONLINE:
            return 0
        return connect.transact(self._catalog, enqueue.mark_gone, ids, VANISHED)
