"""One root: its watch, its arrivals and its scans, one turn at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog.enqueue import Enqueued
from featd.catalog.hosts import scan_of
from featd.config import RootConfig
from featd.ingest.arrivals import Arrivals
from featd.ingest.contents import ContentChecks
from featd.ingest.hints import MAX_FOLDERS, Hint, Hints, Taken, Trouble, folder_of
from featd.ingest.scan import Scan
from featd.ingest.scan_report import ScanReport, told_unreadable
from featd.ingest.watch import Watch
from featd.roots import RootState, root_state
from featd.states import PRIORITY_ARRIVAL, PRIORITY_BACKLOG

log = logs.get("ingest")

CHECK_SECONDS = 2.0
"""Between two checks of the root and of the threads of its watch."""
AGAIN_SECONDS = 1.0
"""At least this long between two scans of a whole root; and at least a quarter of the time that the last one took."""


@dataclass(slots=True)
class Counts:
    """What went wrong since the start of this process."""

    overflows: int = 0
    rewatched: int = 0
    handler_errors: int = 0


@dataclass(slots=True)
class Doubts:
    """Folders that must be scanned soon, with what was reported of them; `everything`: the whole root."""

    folders: dict[bytes, Hint] = field(default_factory=dict)
    everything: bool = True

    def add(self, folders: Mapping[bytes, Hint]) -> None:
        self.folders |= folders
        if self.folders.pop(b"", None) is not None:
            self.everything = True
        if len(self.folders) > MAX_FOLDERS:
            self.folders.clear()
            self.everything = True

    def take_folder(self) -> bytes | None:
        """Take one of them, and with it all that are beneath it. What went comes before what came, for it may have
        moved there."""
        if not self.folders:
            return None
        first = min(self.folders, key=lambda one: (self.folders[one] is not Hint.GONE, one.split(b"/")))
        beneath = first + b"/"
        self.folders = {
            one: hint for one, hint in self.folders.items() if one != first and not one.startswith(beneath)
        }
        return first


class RootIngest:
    """Keeps the catalog up to date with one root."""

    def __init__(
        self,
        catalog: sa.Engine,
        root: RootConfig,
        *,
        watched: bool,
        wake: Callable[[], None] = lambda: None,
        on_batch: Callable[[Enqueued], None] = lambda enqueued: None,
    ) -> None:
        self.root = root
        self.name = root.key
        self.counts = Counts()
        self.scans = True
        """Whether this host scans the whole root. A host scans single folders in doubt itself."""
        self.duty = scan_of(self.name)
        self._catalog = catalog
        self._on_batch = on_batch
        self.hints = Hints(wake)
        self._watch = Watch(root, self.hints) if watched and root.watch else None
        self._arrivals = Arrivals(catalog, root)
        self._contents = ContentChecks(catalog, root, hurry=not watched)
        self._state = root_state(root.path)
        self._doubts = Doubts()
        self._out_of_watches = False
        self._told: str | None = None
        self.unreadable: list[str] = []
        """Folders that the last scans could not read."""
        self.last = ScanReport(self.name, RootState.ONLINE)
        """What the last whole scan found."""
        self._passing: str | None = None
        self._broken: str | None = None
        self._opened = False
        self._check_due = 0.0
        self._scan: Scan | None = None
        self._folder_scan: Scan | None = None
        self._scan_began = 0.0
        self._scan_not_before = 0.0
        self._scan_due = 0.0

    # The turn

    def step(self, now: float) -> list[Scan]:
        """Take what the watch reports, enqueue complete files, continue the scans; returns the scans that ended."""
        if now >= self._check_due:
            self._check(now)
        self._hear(self.hints.take(), now)
        arrived = self._arrivals.step(now)
        if arrived.offline:
            self._doubts.everything = True
        if arrived.enqueued.any or arrived.gone or arrived.enqueued.doubted:
            self._took(arrived.enqueued)
        if self._scan is None and self._folder_scan is None:
            self._compare(now)
        return self._scan_on(now)

    def _compare(self, now: float) -> None:
        if changed := self._contents.step(now):
            self._on_batch(Enqueued(changed=changed))
        if self._contents.more and self._contents.next_due() is None:
            self._contents.more = False
            self._doubts.everything = True

    def _took(self, enqueued: Enqueued) -> None:
        self._contents.add(enqueued.doubted)
        self._on_batch(enqueued)

    def next_due(self, now: float) -> float:
        """The time of the next turn; `now` where there is work already."""
        if self._scan is not None or self._folder_scan is not None or self._doubts.folders:
            return now
        due = [self._next_scan()]
        if self._watch is not None or self._state is not RootState.ONLINE:
            due.append(self._check_due)
        for part in (self._arrivals, self._contents):
            if (part_due := part.next_due()) is not None:
                due.append(part_due)
        return min(due)

    @property
    def in_question(self) -> bool:
        """Whether files wait for a check of their content, or a scan must find them."""
        return bool(self._contents) or self._doubts.everything or self._scan is not None

    def close(self) -> None:
        for scan in (self._scan, self._folder_scan):
            if scan is not None:
                scan.close()
        if self._watch is not None:
            self._watch.close()

    # Who scans

    @property
    def online(self) -> bool:
        """Whether the root was online at the last check."""
        return self._state is RootState.ONLINE

    @property
    def in_doubt(self) -> bool:
        """Whether this host watches the whole root, but may have missed changes that no scan has found yet.

        This is so at the start, too: no other host's watch has reported what was written here while featd was down.
        A root that is not watched is scanned every `rescan_seconds` and no earlier.
        """
        return self.online and self.watching and (self._doubts.everything or self._scan is not None)

    def stand_by(self) -> None:
        """Do not scan this root (any more). Doubts remain until the scanning host has been asked."""
        self.scans = False
        if self._scan is not None:
            self._scan.close()  # else its thread and its folder stay until the garbage collector comes
            self._scan = None

    def leave_doubt(self) -> None:
        """The host that scans this root was asked for a scan."""
        self._doubts.everything = False
        self._passing = None

    def scan_soon(self) -> None:
        """Scan this root from now on, beginning now."""
        self.scans = True
        self._doubts.everything = True

    # What the status shows

    @property
    def watching(self) -> bool:
        """Whether all of the root is watched."""
        return self._watch is not None and self._watch.is_open and not self._out_of_watches

    @property
    def note(self) -> str | None:
        """What the operator should know about this root, and what featd does about it."""
        every = f"scanning every {self.root.rescan_seconds:g} s instead"
        if self._state is RootState.EMPTY:
            return "empty: images of this root keep their state until there are files again"
        if self._state is not RootState.ONLINE:
            return f"offline ({self._state}): images of this root keep their state until it is back"
        if self._watch is not None and self._watch.problem is not None:
            return f"{self._watch.problem}: {every}"
        if self._out_of_watches:
            return f"{Trouble.OUT_OF_WATCHES}: {every} where it is not watched"
        if self._passing is not None:
            return f"{self._passing}: scanning it again"
        if self.last.state is RootState.UNMOUNTED:
            return "not mounted, though it was before: images of this root keep their state"
        if self.last.away:
            return f"not mounted: {', '.join(self.last.away)}: images there keep their state"
        if self.last.held:
            return (
                f"{self.last.held:,} images vanished at once; they keep their state for"
                f" {self.root.gone_after_seconds:g} s: if that is right, `featd scan --confirm-gone {self.name}`"
            )
        if self.unreadable:
            return f"{told_unreadable(self.unreadable)}: images there keep their state"
        return None

    # The watch

    def _check(self, now: float) -> None:
        """Check the root and its watch, and watch anew where something has changed."""
        self._check_due = now + CHECK_SECONDS
        before, self._state = self._state, root_state(self.root.path)
        if self._state is RootState.ONLINE and before is not RootState.ONLINE:
            log.info("root_online", "root is back; scanning it again", root=self.name)
            self._doubts.everything = True
            self._scan_not_before = now
        if self._watch is None:
            return
        if not self._opened:
            self._opened = True
            self._open_watch()
        elif (why := self._broken or self._watch.trouble()) is not None:
            self._broken = None
            log.warning(
                "watch_lost",
                "lost the watch of a root; watching and scanning it again",
                root=self.name,
                why=why,
            )
            self.counts.rewatched += 1
            self._passing = why
            self._doubts.everything = True
            self._open_watch()
        elif not self._watch.is_open and self._state is not before:
            self._open_watch()

    def _open_watch(self) -> None:
        assert self._watch is not None
        self._out_of_watches = False
        self._watch.open()
        # Problems while the watches were added are among the hints.
        self._hear(self.hints.take(), clock.monotonic())
        why = Trouble.OUT_OF_WATCHES if self._out_of_watches else self._watch.problem
        if why is not None and why != self._told and self._state is RootState.ONLINE:
            log.warning(
                "root_not_watched",
                "cannot watch a root or a part of it; scanning it instead",
                root=self.name,
                why=why,
                every_seconds=self.root.rescan_seconds,
            )
        self._told = why

    def _hear(self, taken: Taken, now: float) -> None:
        for path, hint in taken.paths.items():
            if not self._arrivals.hear(path, hint, now):
                self._doubts.add({folder_of(path): hint})
        self._doubts.add(taken.folders)
        for trouble, times in taken.troubles.items():
            self._hear_trouble(trouble, times)

    def _hear_trouble(self, trouble: Trouble, times: int) -> None:
        match trouble:
            case Trouble.UNMOUNTED | Trouble.LOST:
                self._broken = trouble
                self._check_due = 0.0
                return
            case Trouble.OUT_OF_WATCHES:
                if self._out_of_watches:
                    return
                self._out_of_watches = True
            case Trouble.OVERFLOW:
                self.counts.overflows += times
            case Trouble.HANDLER:
                self.counts.handler_errors += times
        if trouble is not Trouble.OUT_OF_WATCHES:
            if self._passing != trouble:  # a flood of events brings hundreds of these
                log.warning("events_lost", f"{trouble}; scanning the root again", root=self.name)
            self._passing = trouble
        self._doubts.everything = True

    # The scans

    def _next_scan(self) -> float:
        return self._scan_not_before if self._doubts.everything and self.scans else self._scan_due

    def _scan_on(self, now: float) -> list[Scan]:
        ended = []
        if self._folder_scan is None and (folder := self._doubts.take_folder()) is not None:
            self._folder_scan = self._begin(folder)
        # A folder that was made or moved here a moment ago does not wait for the scan of the whole root.
        if self._folder_scan is not None and self._go_on(self._folder_scan):
            ended.append(self._folder_scan)
            self.unreadable += self._folder_scan.report.unreadable
            self._folder_scan = None
        if self._scan is None and now >= self._next_scan():
            if self._watch is not None and not (self.watching or (self.scans and self._doubts.everything)):
                self._open_watch()  # there may be enough watches by now
            if self.scans:
                self._doubts.everything = False
                self._scan_began = clock.monotonic()
                self._scan = self._begin(b"")
            else:
                self._scan_due = now + self.root.rescan_seconds
        # Meanwhile the scan of the whole root waits: it could find the new name of a folder before the old one is gone.
        if self._scan is not None and self._folder_scan is None and self._go_on(self._scan):
            ended.append(self._scan)
            self._compare_unreadable(self._scan.report.unreadable)
            self.last, self._scan = self._scan.report, None
            after = clock.monotonic()
            self._scan_not_before = after + max(AGAIN_SECONDS, (after - self._scan_began) / 4)
            self._scan_due = after + self.root.rescan_seconds
            if not self._doubts.everything:
                self._passing = None
        return ended

    def _compare_unreadable(self, unreadable: list[str]) -> None:
        """A folder that could not be read could not be watched either: watch anew once it can be read."""
        if set(self.unreadable) - set(unreadable):
            self._broken = "a folder that was unreadable can be read now"
            self._check_due = 0.0
        self.unreadable = unreadable

    def _begin(self, folder: bytes) -> Scan:
        scan = Scan(
            self._catalog,
            self.root,
            start=folder,
            priority=PRIORITY_ARRIVAL if folder else PRIORITY_BACKLOG,
            durable=not folder,
            on_batch=self._took,
        )
        if self._watch is not None:
            scan.take_young = self._arrivals.take_young
        return scan

    def _go_on(self, scan: Scan) -> bool:
        """One step of a scan. A scan that fails is due again."""
        try:
            return scan.step()
        except BaseException:
            self._doubts.add({scan.start: Hint.GONE})  # before others, as it was
            if scan.start:
                self._folder_scan = None
            else:
                self._scan = None
            raise
