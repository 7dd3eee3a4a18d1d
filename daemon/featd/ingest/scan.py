"""The scan: bring the catalog up to what is on disk. Constant memory, safe to repeat, safe to interrupt."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa

from featd import clock, logs
from featd.batched import batched
from featd.catalog import connect, counters, enqueue
from featd.catalog.enqueue import Enqueued, FoundFile, KnownFile
from featd.config import RootConfig
from featd.ingest.globs import Globs
from featd.ingest.walk import Walked, walk
from featd.paths import RootState, from_catalog, root_state, to_catalog
from featd.states import PRIORITY_BACKLOG

log = logs.get("ingest")

BATCH_FILES = 2000
VANISHED = "vanished"
EXCLUDED = "excluded by the configuration"


@dataclass(slots=True)
class ScanReport:
    """What one scan of one root found."""

    root: str
    state: RootState
    files: int = 0
    enqueued: Enqueued = field(default_factory=Enqueued)
    gone: int = 0
    unreadable: list[str] = field(default_factory=list)


def scan_root(
    catalog: sa.Engine,
    root: RootConfig,
    *,
    start: bytes = b"",
    priority: int = PRIORITY_BACKLOG,
    on_batch: Callable[[Enqueued], None] = lambda enqueued: None,
) -> ScanReport:
    """Enqueue what is new, changed or back beneath `root` (or its folder `start`), then mark what is gone.

    An offline root is left alone: its rows keep their state.
    """
    report = ScanReport(str(root.path), root_state(root.path))
    if report.state is not RootState.ONLINE:
        log.warning(
            "offline", "the root is left alone until it is back", root=report.root, state=report.state
        )
        return report
    globs = Globs(root.include, root.exclude)
    seen = Walked()
    found = walk(os.fsencode(root.path), globs, root.follow_symlinks, seen, start)
    for batch in batched(found, BATCH_FILES):
        enqueued = _enqueue_settled(catalog, root, batch, priority)
        report.enqueued.add(enqueued)
        on_batch(enqueued)
    report.files = seen.files
    report.unreadable = seen.unreadable
    # A root that went offline under the walk has emptied it: nothing may be believed gone then.
    if root_state(root.path) is RootState.ONLINE:
        report.gone = _mark_gone(catalog, root, globs, start)
    connect.transact(catalog, lambda conn: _note_scan(conn, report))
    return report


def _enqueue_settled(catalog: sa.Engine, root: RootConfig, batch: list[FoundFile], priority: int) -> Enqueued:
    """Enqueue a batch; files that changed a moment ago may still be written and wait for settle_seconds.

    A time in the future says nothing, and delays no further than that.
    """
    now_ns = clock.utcnow().timestamp() * 1e9
    young_ns = root.settle_seconds * 1e9
    fresh = [file for file in batch if abs(now_ns - file.mtime_ns) < young_ns]
    rested = [file for file in batch if abs(now_ns - file.mtime_ns) >= young_ns]
    enqueued = Enqueued()
    for files, delay in ((rested, 0.0), (fresh, root.settle_seconds)):
        if files:
            enqueued.add(
                connect.transact(
                    catalog,
                    lambda conn, files=files, delay=delay: enqueue.enqueue(  # type: ignore[misc]
                        conn, str(root.path), files, priority=priority, delay_seconds=delay
                    ),
                )
            )
    return enqueued


def _mark_gone(catalog: sa.Engine, root: RootConfig, globs: Globs, start: bytes) -> int:
    """Look again at every path the catalog knows; only what is not there (ENOENT) is gone."""
    gone = 0
    root_fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for known in _known(catalog, str(root.path), start):
            missing: dict[str, list[int]] = {VANISHED: [], EXCLUDED: []}
            for file in known:
                if not globs.wants(file.path):
                    missing[EXCLUDED].append(file.id)
                elif _is_missing(root_fd, file, root.follow_symlinks):
                    missing[VANISHED].append(file.id)
            if missing[VANISHED] and root_state(root.path) is not RootState.ONLINE:
                return gone
            for reason, ids in missing.items():
                if ids:
                    gone += connect.transact(
                        catalog,
                        lambda conn, ids=ids, reason=reason: enqueue.mark_gone(conn, ids, reason),  # type: ignore[misc]
                    )
    finally:
        os.close(root_fd)
    return gone


def _known(catalog: sa.Engine, root: str, start: bytes) -> Iterator[list[KnownFile]]:
    prefix = to_catalog(start) + "/" if start else ""
    for known in enqueue.walk_known(lambda: connect.reading(catalog), root):
        beneath = [file for file in known if file.path.startswith(prefix)]
        if beneath:
            yield beneath


def _is_missing(root_fd: int, file: KnownFile, follow_symlinks: bool) -> bool:
    """Whether there is surely no such file any more. A doubt (no permission, an I/O error) is not missing."""
    try:
        found = os.stat(from_catalog(file.path), dir_fd=root_fd, follow_symlinks=follow_symlinks)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return not stat.S_ISREG(found.st_mode)


def _note_scan(conn: sa.Connection, report: ScanReport) -> None:
    ingest = counters.get_value(conn, "ingest") or {"watching": 0, "overflows": 0}
    ingest["last_scan_at"] = clock.utcnow().isoformat()
    counters.set_value(conn, "ingest", ingest)


def describe(report: ScanReport) -> str:
    """One line for people."""
    if report.state is not RootState.ONLINE:
        return f"{report.root}: offline ({report.state}); left alone"
    unreadable = f", {len(report.unreadable)} unreadable folders" if report.unreadable else ""
    return (
        f"{report.root}: {report.files} images, {report.enqueued.new} new, {report.enqueued.changed} changed,"
        f" {report.enqueued.returned} back, {report.gone} gone{unreadable}"
    )
