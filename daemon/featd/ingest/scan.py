"""The scan brings the catalog up to date with the disk. It needs constant memory and can be interrupted."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, enqueue, hosts, stats, values
from featd.catalog.enqueue import Enqueued, FoundFile, KnownFile, Reread
from featd.config import RootConfig
from featd.crash_points import CrashPoint, crash_point
from featd.errors import RefusedError
from featd.ingest.walk import PORTION_FILES, Walk
from featd.paths import from_catalog, is_stand_in, stand_in, to_catalog
from featd.roots import Globs, RootState, mounts_beneath, root_state
from featd.states import PRIORITY_BACKLOG

log = logs.get("ingest")

BATCH_FILES = 2000
SLICE_SECONDS = 0.2
"""How long one step of a scan takes; files that arrive meanwhile wait for it."""
CURSOR_SECONDS = 2.0
"""Between two saves of the scan's position: so much is repeated after an interruption."""
_MOUNTS = "mounts."
VANISHED = "vanished"
MASS_IMAGES = 100
"""Of fewer images, any number may vanish at once."""
EXCLUDED = "excluded by the configuration"


@dataclass(slots=True)
class ScanReport:
    """What one scan of one root found."""

    root: str
    state: RootState
    files: int = 0
    enqueued: Enqueued = field(default_factory=Enqueued)
    gone: int = 0
    held: int = 0
    """Images that vanished all at once, and keep their state for now."""
    away: list[str] = field(default_factory=list)
    """Folders that were mount points and are not mounted: what was in them keeps its state."""
    unreadable: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


class Scan:
    """One scan of a root, or of its folder `start`, in steps, so that arrivals need not wait for its end.

    First missing files are marked gone, then new, changed and returned ones are enqueued: so a worker that meets a
    moved file finds its old name among those that are gone. An offline root is skipped: its rows keep their state.

    confirm_gone: what vanished becomes gone, however much it is, and former mount points are forgotten.
    durable: the scan's position is kept in the catalog (`scan.<root>`). The next scan begins there and goes round to
    the same place, so that repeated interruptions do not keep it from any folder.
    take_young: may take over a file that changed a moment ago and must rest before it is complete.
    """

    def __init__(
        self,
        catalog: sa.Engine,
        root: RootConfig,
        *,
        start: bytes = b"",
        priority: int = PRIORITY_BACKLOG,
        durable: bool = False,
        confirm_gone: bool = False,
        reread: Reread = Reread.NONE,
        on_batch: Callable[[Enqueued], None] = lambda enqueued: None,
    ) -> None:
        self.report = ScanReport(root.key, root_state(root.path))
        self.start = start
        self._catalog = catalog
        self._root = root
        self._globs = Globs(root.include, root.exclude)
        self._priority = priority
        # Where links are followed, the order of the walk decides under which of its names a folder is known.
        self._durable = durable and not root.follow_symlinks
        self._saved_at = clock.monotonic()
        self._on_batch = on_batch
        self._confirm_gone = confirm_gone
        self._reread = reread
        self.take_young: Callable[[FoundFile], bool] = lambda file: False
        self._stand_ins: dict[int, str] = {}
        self._steps = self._all_steps()

    def step(self) -> bool:
        """Continue for a moment; whether the scan is over."""
        return next(self._steps, None) is None

    def _all_steps(self) -> Iterator[bool]:
        if self.report.state is not RootState.ONLINE:
            tell = log.debug if self.start else log.warning  # a scan of the whole root follows
            tell(
                "root_offline",
                "root is offline; its images keep their state until it is back",
                root=self.report.root,
                state=self.report.state,
            )
            return
        self.report.away = self._look_at_mounts()
        if "" in self.report.away:
            self.report.state = RootState.UNMOUNTED
            log.warning(
                "root_unmounted",
                "root was a mount point and is not mounted; its images keep their state until it is back",
                root=self.report.root,
            )
            return
        if self.report.away and not self.start:
            log.warning(
                "folder_unmounted",
                "a folder was a mount point and is not mounted; images in it keep their state until it is back",
                root=self.report.root,
                folders=self.report.away,
            )
        cursor = self._cursor()
        parts = [self._mark_gone(cursor.get("gone_after") or ""), self._enqueue_found(cursor.get("folder"))]
        if "folder" in cursor:  # else interruptions could keep the scan from ever finding anything
            parts.reverse()
        for part in parts:
            yield from part
        self._mark_stand_ins_gone()
        connect.transact(self._catalog, self._note)

    def _look_at_mounts(self) -> list[str]:
        """The mount points of earlier scans that are not mounted now. A whole scan remembers those of today."""
        name = _MOUNTS + self.report.root
        now = mounts_beneath(self._root.path)
        with connect.reading(self._catalog) as conn:
            before = known_mounts(conn, self.report.root)
        known = now if self._confirm_gone else now | before
        if not self.start and known != before:
            connect.transact(self._catalog, values.set_value, name, sorted(known))
        return sorted(known - now)

    # Files that exist

    def _enqueue_found(self, cursor: str | None) -> Iterator[bool]:
        if not self._globs.takes_folder(to_catalog(self.start)):
            return
        walk = Walk(os.fsencode(self._root.path), self._globs, self._root.follow_symlinks)
        at = None if cursor is None else from_catalog(cursor)
        spans = [(None, None)] if at is None else [(at, None), (None, at)]
        for after, upto in spans:
            found: list[FoundFile] = []
            finished: bytes | None = None
            until = clock.monotonic() + SLICE_SECONDS
            for portion in walk.portions(self.start, after=after, upto=upto):
                found += portion.files
                finished = portion.folder if portion.last else finished
                if len(found) > BATCH_FILES - PORTION_FILES or clock.monotonic() > until:
                    self._enqueue(found)
                    self._save({"folder": None if finished is None else to_catalog(finished)})
                    found = []
                    yield True
                    until = clock.monotonic() + SLICE_SECONDS
            self._enqueue(found)
        self.report.files = walk.files
        self.report.unreadable = walk.unreadable
        self.report.ignored = walk.ignored

    def _enqueue(self, found: list[FoundFile]) -> None:
        """Enqueue a batch. Files that changed a moment ago may still be written and wait for settle_seconds.

        A time in the future is no reason to wait longer than that.
        """
        settle_seconds = self._root.settle_seconds
        now_ns = clock.utcnow().timestamp() * 1e9
        rested: list[FoundFile] = []
        fresh: list[FoundFile] = []
        for file in found:
            if abs(now_ns - file.mtime_ns) >= settle_seconds * 1e9:
                rested.append(file)
            elif not self.take_young(file):
                fresh.append(file)
        enqueued = Enqueued()
        crash_point(CrashPoint.INGEST_FOUND)
        for files, delay in ((rested, 0.0), (fresh, settle_seconds)):
            if files:
                enqueued.add(
                    enqueue_files(
                        self._catalog, self._root, files, self._priority, delay, reread=self._reread
                    )
                )
        if found:
            crash_point(CrashPoint.INGEST_ENQUEUED)
            self._on_batch(enqueued)
            enqueued.doubted.clear()  # any number of them
            self.report.enqueued.add(enqueued)

    # Files that do not

    def _mark_gone(self, cursor: str) -> Iterator[bool]:
        """Check every path that the catalog knows again; only a file that does not exist (ENOENT) is gone."""
        try:
            root_fd = os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not self.start and not (yield from self._look_for_missing(root_fd)):
                return
            for known in self._known(cursor):
                missing: dict[str, list[int]] = {VANISHED: [], EXCLUDED: []}
                for file in known:
                    if not self._takes(file.path):
                        missing[EXCLUDED].append(file.id)
                    elif not self.report.held and self._is_gone(root_fd, file.path):
                        missing[VANISHED].append(file.id)
                # A root that goes offline looks empty.
                if missing[VANISHED] and root_state(self._root.path) is not RootState.ONLINE:
                    return
                for reason, ids in missing.items():
                    if ids:
                        self.report.gone += connect.transact(self._catalog, enqueue.mark_gone, ids, reason)
                self._save({"gone_after": known[-1].path})
                yield True
        finally:
            os.close(root_fd)

    def _takes(self, path: str) -> bool:
        return is_stand_in(path) or self._globs.takes(path)

    def _is_gone(self, root_fd: int, path: str) -> bool:
        if is_stand_in(path):
            return False  # the walk will tell
        away = any(path.startswith(f"{folder}/") for folder in self.report.away)
        return not away and is_missing(root_fd, from_catalog(path), self._root.follow_symlinks)

    def _mark_stand_ins_gone(self) -> None:
        """Files that the catalog refused once and that the walk has not found, or that it does not refuse any more."""
        ids = [one for one, path in self._stand_ins.items() if path not in self.report.enqueued.refused]
        if ids and not self.report.held and root_state(self._root.path) is RootState.ONLINE:
            self.report.gone += connect.transact(self._catalog, enqueue.mark_gone, ids, VANISHED)

    def _look_for_missing(self, root_fd: int) -> Generator[bool, None, bool]:
        """Whether anything is missing. Where more than half of the images have vanished, not one by one as a watch
        reports it, they keep their state for gone_after_seconds: a disk may be away in a way that nothing shows. Not
        where as many files are there, new ones included: a folder was renamed."""
        total = vanished = excluded = 0
        for known in self._known(""):
            for file in known:
                if self._takes(file.path):
                    total += 1
                    vanished += self._is_gone(root_fd, file.path)
                else:
                    excluded += 1
            yield True
        name = f"vanished.{self.report.root}"
        mass = total >= MASS_IMAGES and vanished > total / 2 and not self._confirm_gone
        mass = mass and not (yield from self._has_files(vanished))
        now = clock.utcnow().timestamp()
        with connect.reading(self._catalog) as conn:
            since = values.get_value(conn, name)
        if mass and now - (since or now) < self._root.gone_after_seconds:
            self.report.held = vanished
            log.warning(
                "images_vanished",
                "more than half of a root's images vanished at once; they keep their state for now. If that is right,"
                " confirm it with `featd scan --confirm-gone`",
                root=self.report.root,
                vanished=vanished,
                of=total,
                gone_after_seconds=self._root.gone_after_seconds,
            )
        if (since is None) is mass:
            connect.transact(self._catalog, values.set_value, name, now if mass else None)
        return bool(vanished or excluded)

    def _has_files(self, count: int) -> Generator[bool, None, bool]:
        walk = Walk(os.fsencode(self._root.path), self._globs, self._root.follow_symlinks)
        until = clock.monotonic() + SLICE_SECONDS
        for _ in walk.portions():
            if walk.files >= count:
                return True
            if clock.monotonic() > until:
                yield True
                until = clock.monotonic() + SLICE_SECONDS
        return False

    def _known(self, cursor: str) -> Iterator[Sequence[KnownFile]]:
        """The rows beneath `start` that are not gone, first those behind the cursor, then the others."""

        def rows(after: str) -> Iterator[Sequence[KnownFile]]:
            folder = to_catalog(self.start)
            for known in enqueue.walk_known(
                self._catalog, self.report.root, BATCH_FILES, folder=folder, after=after
            ):
                self._stand_ins |= {file.id: file.path for file in known if is_stand_in(file.path)}
                yield known

        yield from rows(cursor)
        if cursor:
            for known in rows(""):
                yield known
                if known[-1].path > cursor:
                    return

    # The cursor

    def _cursor(self) -> dict[str, Any]:
        if not self._durable:
            return {}
        with connect.reading(self._catalog) as conn:
            return values.get_value(conn, cursor_name(self._root)) or {}

    def _save(self, cursor: dict[str, Any]) -> None:
        now = clock.monotonic()
        if self._durable and now - self._saved_at >= CURSOR_SECONDS and any(cursor.values()):
            self._saved_at = now
            crash_point(CrashPoint.SCAN_BEFORE_CURSOR)
            connect.transact(self._catalog, values.set_value, cursor_name(self._root), cursor)
            crash_point(CrashPoint.SCAN_CURSOR)

    def _note(self, conn: sa.Connection) -> None:
        if self.start:
            return
        hosts.note_scan(conn)
        if values.get_value(conn, stats.REMOVED + self.report.root):
            values.set_value(conn, stats.REMOVED + self.report.root, False)
        if self._durable:
            values.set_value(conn, cursor_name(self._root), {})


def scan_root(
    catalog: sa.Engine,
    root: RootConfig,
    *,
    start: bytes = b"",
    priority: int = PRIORITY_BACKLOG,
    confirm_gone: bool = False,
    reread: Reread = Reread.NONE,
) -> ScanReport:
    """A whole scan at once."""
    scan = Scan(catalog, root, start=start, priority=priority, confirm_gone=confirm_gone, reread=reread)
    while not scan.step():
        pass
    return scan.report


def known_mounts(conn: sa.Connection, root: str) -> set[str]:
    """The mount points at and beneath a root that earlier scans saw, as `roots.mounts_beneath` gives them."""
    return set(values.get_value(conn, _MOUNTS + root) or [])


def cursor_name(root: RootConfig) -> str:
    return f"scan.{root.name or to_catalog(os.fsencode(root.path))}"


def enqueue_files(
    catalog: sa.Engine,
    root: RootConfig,
    files: list[FoundFile],
    priority: int,
    delay_seconds: float = 0.0,
    *,
    heard: bool = False,
    reread: Reread = Reread.NONE,
) -> Enqueued:
    """Enqueue files of a root, BATCH_FILES in one transaction. A file that the database refuses is found by halves
    and becomes a failed image; the others go on."""
    enqueued = Enqueued()
    parts = [files[at : at + BATCH_FILES] for at in range(0, len(files), BATCH_FILES)]
    while parts:
        some = parts.pop()
        try:
            enqueued.add(
                connect.transact(
                    catalog,
                    enqueue.enqueue,
                    root.key,
                    some,
                    priority=priority,
                    delay_seconds=delay_seconds,
                    heard=heard,
                    reread=reread,
                )
            )
        except RefusedError as error:
            if len(some) > 1:
                parts += [some[: len(some) // 2], some[len(some) // 2 :]]
                continue
            [file] = some
            enqueued.refused.add(stand_in(file.path))
            why = f"{error}; move the file to a shorter path"
            if connect.transact(catalog, enqueue.refuse, root.key, file, why):
                log.warning(
                    "file_refused",
                    "the catalog cannot hold this file; it counts as failed",
                    file=f"{root.key}/{file.path}",
                    error=str(error),
                )
    return enqueued


def is_missing(root_fd: int, raw: bytes, follow_symlinks: bool) -> bool:
    """Whether the file certainly does not exist any more; not where that is unknown (no permission, an I/O error)."""
    try:
        found = os.stat(raw, dir_fd=root_fd, follow_symlinks=follow_symlinks)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return not stat.S_ISREG(found.st_mode)


def describe(report: ScanReport) -> str:
    """One line for people."""
    if report.state is not RootState.ONLINE:
        return (
            f"{report.root}: offline ({report.state}): not scanned, and its images keep their state; mount or restore"
            " it, then scan again"
        )
    more = f"; {told_ignored(report.ignored)}" if report.ignored else ""
    if report.unreadable:
        more += f"; {told_unreadable(report.unreadable)}"
    if report.held:
        more += f"; {report.held:,} vanished at once and keep their state: confirm with --confirm-gone"
    if report.away:
        more += f"; not mounted, its images keep their state: {', '.join(report.away)}"
    if report.enqueued.refused:
        more += f"; {len(report.enqueued.refused):,} refused by the catalog: see `featd failures`"
    return (
        f"{report.root}: {report.files} images, {report.enqueued.new} new, {report.enqueued.changed} changed,"
        f" {report.enqueued.returned} returned, {report.gone} gone{more}"
    )


def told_ignored(ignored: Mapping[str, int]) -> str:
    """`13 ignored: heic 5, avif 5, links 3`: files that are no images by the patterns of their root."""
    kinds = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    some = [f"{kind} {count:,}" for kind, count in kinds[:5]]
    return f"{sum(ignored.values()):,} ignored: {', '.join(some)}" + (", ..." if len(kinds) > 5 else "")


def told_unreadable(folders: Sequence[str]) -> str:
    """`3 folders cannot be read, for example 2026/a`."""
    count = "1 folder" if len(folders) == 1 else f"{len(folders):,} folders"
    return f"{count} cannot be read, for example {folders[0] or 'the root itself'}"
