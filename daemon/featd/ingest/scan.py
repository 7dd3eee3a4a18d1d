"""The scan brings the catalog up to date with the disk. It needs constant memory and can be interrupted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, enqueue, hosts, stats, values
from featd.catalog.enqueue import Enqueued, FileRow, FoundFile, Reread
from featd.config import RootConfig
from featd.crash_points import CrashPoint, crash_point
from featd.errors import RefusedError
from featd.ingest import compare
from featd.ingest.compare import Comparison, Stretch
from featd.ingest.scan_report import ScanReport
from featd.ingest.walk import Walk, found_file
from featd.paths import from_catalog, is_stand_in, stand_in, to_catalog
from featd.roots import Globs, RootState, mounts_beneath, root_state
from featd.states import PRIORITY_BACKLOG

log = logs.get("ingest")

T = TypeVar("T")

CURSOR_SECONDS = 2.0
"""Between two saves of the scan's position: so much is repeated after an interruption."""
_MOUNTS = "mounts."
VANISHED = "vanished"
MASS_IMAGES = 100
"""Of fewer images, any number may vanish at once."""
EXCLUDED = "excluded by the configuration"
LOOKS = 200
"""Files that are looked at one by one in a step: over a network, a look may take a millisecond."""
MOST_HELD = 50_000
"""Paths of one kind that wait for the end of a look at the whole root. Where there are more, it is walked again."""


@dataclass(slots=True)
class Held:
    """Files or paths that wait for the end of a look at the whole root. `all`: none had to be left out."""

    some: list[Any] = field(default_factory=list)
    all: bool = True

    def add(self, more: Sequence[Any]) -> None:
        room = MOST_HELD - len(self.some)
        self.some += more[:room]
        self.all &= len(more) <= room


class Scan:
    """One scan of a root, or of its folder `start`, in steps, so that arrivals need not wait for its end.

    First missing files are marked gone, then new, changed and returned ones are enqueued: so a worker that meets a
    moved file finds its old name among those that are gone. Where nothing is known yet, or an earlier scan was
    interrupted, files are enqueued as they are found. An offline root is skipped: its rows keep their state.

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
        self._comparison = Comparison(
            catalog,
            root.key,
            to_catalog(start),
            priority,
            everything=reread is Reread.ALL,
            settle_seconds=root.settle_seconds,
        )
        self._new = Held()
        self._changed = Held()
        self._missing = {VANISHED: Held(), EXCLUDED: Held()}
        self._stand_ins: set[str] = set()
        self._total = 0
        """Rows that are not gone and whose files the patterns want."""
        self._vanished = 0
        self._steps = self._all_steps()

    def step(self) -> bool:
        """Continue for a moment; whether the scan is over."""
        return next(self._steps, None) is None

    def close(self) -> None:
        """Give up; waits for the end of a transaction."""
        self._steps.close()

    def _all_steps(self) -> Generator[bool]:
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
        try:
            root_fd = os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self.report.state = root_state(self._root.path)
            return
        try:
            yield from self._compare(root_fd)
            self._mark_stand_ins_gone()
        finally:
            os.close(root_fd)
        connect.transact(self._catalog, self._note)

    def _compare(self, root_fd: int) -> Iterator[bool]:
        """Look at the whole root; mark gone what is missing; enqueue what was found, if that was not done at once."""
        after = self._cursor()
        stretches = self._look(root_fd, after or "")
        waits = after is None and self._comparison.any_known()
        if not waits:
            yield from self._enqueue(stretches)
        else:
            for stretch in stretches:
                self._new.add(stretch.new)
                self._changed.add(stretch.changed)
                # A scan after an interruption does not wait: many must not keep it from enqueueing.
                self._save("")
                yield True
        if not self.start:
            self._judge_missing()
        yield from self._mark_missing(root_fd)
        if waits and self._new.all and self._changed.all:
            yield from self._enqueue(self._look_again(root_fd))
        elif waits:
            yield from self._enqueue(stretch for stretch, _ in self._round(root_fd))

    def _look(self, root_fd: int, after: str) -> Iterator[Stretch]:
        """What differs anywhere; what is missing is held."""
        for stretch, missing in self._round(root_fd, after):
            for reason, paths in missing.items():
                self._missing[reason].add(paths)
            yield stretch

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

    def _round(self, root_fd: int, after: str = "") -> Iterator[tuple[Stretch, dict[str, list[str]]]]:
        """What differs anywhere, beginning behind `after` and going round to it; with the paths that are missing for
        sure, by reason. Empty ones are pauses."""
        walk = Walk(os.fsencode(self._root.path), self._globs, self._root.follow_symlinks)
        walks = self._globs.takes_folder(to_catalog(self.start))
        self._total = self._vanished = 0
        for begin, end in [(after, None), ("", after)] if after else [("", None)]:
            portions = walk.portions(self.start, after=begin, upto=end) if walks else iter(())
            for stretch in self._comparison.stretches(portions, begin, end):
                if stretch is None:
                    yield Stretch(None), {}
                    continue
                missing: dict[str, list[str]] = {VANISHED: [], EXCLUDED: []}
                for paths in _parts(stretch.missing, LOOKS):
                    yield Stretch(None), {}
                    for reason, found in self._sort_missing(root_fd, paths).items():
                        missing[reason] += found
                self._total += stretch.rows - len(missing[EXCLUDED])
                self._vanished += len(missing[VANISHED])
                yield stretch, missing
        self.report.files = walk.files
        self.report.unreadable = walk.unreadable
        self.report.ignored = walk.ignored

    # Files that exist

    def _look_again(self, root_fd: int) -> Iterator[Stretch]:
        """The files that were held, as they are now; as they were where that cannot be told."""
        follow = self._root.follow_symlinks
        for held in (self._new, self._changed):
            for files in _parts(held.some, LOOKS):
                found: list[FileRow] = []
                for file in files:
                    try:
                        seen = os.stat(from_catalog(file[0]), dir_fd=root_fd, follow_symlinks=follow)
                    except (FileNotFoundError, NotADirectoryError):
                        continue
                    except (
                        OSError
                    ):  # the walk came by folders, and this path may be longer than the kernel takes
                        found.append(file)
                        continue
                    if stat.S_ISREG(seen.st_mode):
                        found.append(found_file(file[0], seen))
                yield Stretch(None, new=found) if held is self._new else Stretch(None, changed=found)

    def _enqueue(self, stretches: Iterable[Stretch]) -> Iterator[bool]:
        """Enqueue what differs, in a thread and one stretch behind the walk, so that the database writes meanwhile."""
        with ThreadPoolExecutor(1, "enqueue") as threads:
            writing: Future[Enqueued] | None = None
            upto: str | None = None
            for stretch in stretches:
                if writing is not None:
                    self._tell(writing.result(), upto)
                writing, upto = threads.submit(self._write, *self._sort_found(stretch)), stretch.upto
                yield True
            if writing is not None:
                self._tell(writing.result(), upto)

    def _sort_found(self, stretch: Stretch) -> tuple[Sequence[FileRow], Sequence[FileRow], Sequence[FileRow]]:
        """The files that are new most likely, the others, and those that changed a moment ago: they may still be
        written, and wait for settle_seconds."""
        young = set(self._comparison.young([*stretch.new, *stretch.changed]))
        fresh = sorted(file for file in young if not self.take_young(FoundFile(*file)))
        if not young:
            return stretch.new, stretch.changed, []
        new, changed = (
            [file for file in files if file not in young] for files in (stretch.new, stretch.changed)
        )
        return new, changed, fresh

    def _write(
        self, new: Sequence[FileRow], changed: Sequence[FileRow], fresh: Sequence[FileRow]
    ) -> Enqueued:
        enqueued = Enqueued()
        if new or changed or fresh:
            crash_point(CrashPoint.INGEST_FOUND)
        for files, delay, is_new in (
            (new, 0.0, True),
            (changed, 0.0, False),
            (fresh, self._root.settle_seconds, False),
        ):
            if files:
                enqueued.add(
                    enqueue_files(
                        self._catalog,
                        self._root,
                        files,
                        self._priority,
                        delay,
                        reread=self._reread,
                        new=is_new,
                    )
                )
        if new or changed or fresh:
            crash_point(CrashPoint.INGEST_ENQUEUED)
        return enqueued

    def _tell(self, enqueued: Enqueued, upto: str | None) -> None:
        """Everything up to this path is in the catalog."""
        self._on_batch(enqueued)
        enqueued.doubted.clear()  # any number of them
        self.report.enqueued.add(enqueued)
        self._save(upto)

    # Files that do not

    def _sort_missing(self, root_fd: int, paths: Sequence[str]) -> dict[str, list[str]]:
        """Which of these paths are gone, by reason. Only a file that does not exist (ENOENT) has vanished."""
        missing: dict[str, list[str]] = {VANISHED: [], EXCLUDED: []}
        for path in paths:
            if is_stand_in(path):
                self._stand_ins.add(path)  # the walk will tell
            elif not self._globs.takes(path):
                missing[EXCLUDED].append(path)
            elif self._is_gone(root_fd, path):
                missing[VANISHED].append(path)
        return missing

    def _is_gone(self, root_fd: int, path: str) -> bool:
        away = any(path.startswith(f"{folder}/") for folder in self.report.away)
        return not away and is_missing(root_fd, from_catalog(path), self._root.follow_symlinks)

    def _mark_missing(self, root_fd: int) -> Iterator[bool]:
        wanted = [EXCLUDED] if self.report.held else [VANISHED, EXCLUDED]
        if all(self._missing[reason].all for reason in wanted):
            for reason in wanted:
                for paths in _parts(self._missing[reason].some, LOOKS):
                    # Some may be back.
                    still = [path for path in paths if reason == EXCLUDED or self._is_gone(root_fd, path)]
                    self._mark_gone(reason, still)
                    yield True
            return
        for _, missing in self._round(root_fd):
            for reason, paths in missing.items():
                self._mark_gone(reason, paths)
            yield True

    def _mark_gone(self, reason: str, paths: Sequence[str]) -> None:
        # A root that goes offline looks empty.
        held = reason == VANISHED and (
            self.report.held or root_state(self._root.path) is not RootState.ONLINE
        )
        if not paths or held:
            return
        with connect.reading(self._catalog) as conn:
            ids = [known.id for known in enqueue.known_at(conn, self.report.root, paths)]
        self.report.gone += connect.transact(self._catalog, enqueue.mark_gone, ids, reason)

    def _mark_stand_ins_gone(self) -> None:
        """Files that the catalog refused once and that the walk has not found, or that it does not refuse any more."""
        self._mark_gone(VANISHED, sorted(self._stand_ins - self.report.enqueued.refused))

    def _judge_missing(self) -> None:
        """Where more than half of the images have vanished, not one by one as a watch reports it, they keep their state
        for gone_after_seconds: a disk may be away in a way that nothing shows. Not where as many files are there, new
        ones included: a folder was renamed."""
        total, vanished = self._total, self._vanished
        name = f"vanished.{self.report.root}"
        mass = total >= MASS_IMAGES and vanished > total / 2 and not self._confirm_gone
        mass = mass and self.report.files < vanished
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

    # The cursor

    def _cursor(self) -> str | None:
        """Behind which path an interrupted scan goes on; None where there was none."""
        if not self._durable:
            return None
        with connect.reading(self._catalog) as conn:
            cursor = values.get_value(conn, cursor_name(self._root)) or {}
        return None if (after := cursor.get("after")) is None else str(after)

    def _save(self, after: str | None) -> None:
        now = clock.monotonic()
        if self._durable and now - self._saved_at >= CURSOR_SECONDS and after is not None:
            self._saved_at = now
            crash_point(CrashPoint.SCAN_BEFORE_CURSOR)
            connect.transact(self._catalog, values.set_value, cursor_name(self._root), {"after": after})
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
    files: Sequence[FileRow],
    priority: int,
    delay_seconds: float = 0.0,
    *,
    heard: bool = False,
    reread: Reread = Reread.NONE,
    new: bool = False,
) -> Enqueued:
    """Enqueue files of a root, BATCH_FILES in one transaction. `new`: most likely none has a row yet. A file that the
    database refuses is found by halves and becomes a failed image; the others go on."""
    enqueued = Enqueued()
    parts = _parts(files, compare.BATCH_FILES)
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
                    new=new,
                )
            )
        except RefusedError as error:
            if len(some) > 1:
                parts += [some[: len(some) // 2], some[len(some) // 2 :]]
                continue
            file = FoundFile(*some[0])
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


def _parts(rows: Sequence[T], most: int) -> list[Sequence[T]]:
    """At most so many at once."""
    return [rows[at : at + most] for at in range(0, len(rows), most)]


def is_missing(root_fd: int, raw: bytes, follow_symlinks: bool) -> bool:
    """Whether the file certainly does not exist any more; not where that is unknown (no permission, an I/O error)."""
    try:
        found = os.stat(raw, dir_fd=root_fd, follow_symlinks=follow_symlinks)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return not stat.S_ISREG(found.st_mode)
