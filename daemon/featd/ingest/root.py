"""One root: its watch, its arrivals and its scans, a turn at a time. The scan is the truth, the watch a hint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog.enqueue import Enqueued
from featd.catalog.hosts import scan_of
from featd.config import RootConfig
from featd.ingest.arrivals import Arrivals
from featd.ingest.hints import MAX_FOLDERS, Hints, Taken, Trouble, folder_of
from featd.ingest.scan import Scan
from featd.ingest.watch import Watch
from featd.roots import RootState, root_state
from featd.states import PRIORITY_ARRIVAL, PRIORITY_BACKLOG

log = logs.get("ingest")

CHECK_SECONDS = 2.0
"""Between two looks whether the root and the threads of its watch are still there."""
AGAIN_SECONDS = 1.0
"""At least this long between two scans of a whole root, and a quarter of what the last one took."""

SENTENCES = {
    Trouble.OVERFLOW: "events were lost (the kernel's inotify queue was full)",
    Trouble.OUT_OF_WATCHES: "out of inotify watches (raise fs.inotify.max_user_watches)",
    Trouble.UNMOUNTED: "a disk beneath it was unmounted",
    Trouble.HANDLER: "an event could not be understood",
    Trouble.LOST: "it was deleted",
}


@dataclass(slots=True)
class Counts:
    """What went wrong since the start of this process."""

    overflows: int = 0
    rewatched: int = 0
    handler_errors: int = 0


@dataclass(slots=True)
class Doubts:
    """Folders to be scanned before long; `everything`: the whole root."""

    folders: set[bytes] = field(default_factory=set)
    everything: bool = True

    def add(self, folders: set[bytes]) -> None:
        if b"" in folders:
            self.everything = True
        self.folders |= folders - {b""}
        if len(self.folders) > MAX_FOLDERS:
            self.folders.clear()
            self.everything = True

    def take_folder(self) -> bytes | None:
        """One of them; what is beneath it is done with it."""
        if not self.folders:
            return None
        first = min(self.folders, key=lambda folder: folder.split(b"/"))
        beneath = first + b"/"
        self.folders = {one for one in self.folders if one != first and not one.startswith(beneath)}
        return first


class RootIngest:
    """Brings the catalog up to one root, for as long as it lives."""

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
        self.name = str(root.path)
        self.counts = Counts()
        self.scans = True
        """Whether this host scans all of the root; folders in doubt are scanned by whoever doubts."""
        self.duty = scan_of(self.name)
        self._catalog = catalog
        self._on_batch = on_batch
        self._hints = Hints(wake)
        self._watch = Watch(root, self._hints) if watched and root.watch else None
        self._arrivals = Arrivals(catalog, root)
        self._state = root_state(root.path)
        self._doubts = Doubts()
        self._out_of_watches = False
        self._told: str | None = None
        self._unreadable: set[str] = set()
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
        """Hear the watch, enqueue what is complete, scan on for a moment; returns the scans that ended."""
        if now >= self._check_due:
            self._check(now)
        self._hear(self._hints.take(), now)
        arrived = self._arrivals.step(now)
        if arrived.offline:
            self._doubts.everything = True
        if arrived.enqueued.any or arrived.gone:
            self._on_batch(arrived.enqueued)
        return self._scan_on(now)

    def next_due(self, now: float) -> float:
        """The moment of the next turn; `now` where there is work already."""
        if self._scan is not None or self._folder_scan is not None or self._doubts.folders:
            return now
        due = [self._next_scan()]
        if self._watch is not None or self._state is not RootState.ONLINE:
            due.append(self._check_due)
        if (arrival := self._arrivals.next_due()) is not None:
            due.append(arrival)
        return min(due)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    # Who scans

    @property
    def online(self) -> bool:
        """Whether this host can scan it, as it was seen last."""
        return self._state is RootState.ONLINE

    @property
    def in_doubt(self) -> bool:
        """Whether this host, which watches all of it, lost sight of it and no scan has told yet what became of it.

        So it is at the start too: what was written here while this featd was down, no other host's watch told.
        Where a root is not watched nothing is promised but the scan every `rescan_seconds`, and nobody is asked.
        """
        return self.online and self.watching and (self._doubts.everything or self._scan is not None)

    def stand_by(self) -> None:
        """This host does not scan this root, or not any more. What is in doubt remains so until somebody knows."""
        self.scans = False
        self._scan = None

    def leave_doubt(self) -> None:
        """Whoever scans this root knows of it."""
        self._doubts.everything = False
        self._passing = None

    def scan_soon(self) -> None:
        """This host scans this root from now on, and begins with it."""
        self.scans = True
        self._doubts.everything = True

    # What the status shows

    @property
    def watching(self) -> bool:
        """Whether all of the root is watched."""
        return self._watch is not None and self._watch.is_open and not self._out_of_watches

    @property
    def note(self) -> str | None:
        """What a person should know of this root, and what is done about it."""
        every = f"scanning every {self.root.rescan_seconds:g} s instead"
        if self._state is RootState.EMPTY:
            return "it is empty: its images, if it had any, keep their state until files are there"
        if self._state is not RootState.ONLINE:
            return f"offline ({self._state}): its images keep their state until it is back"
        if self._watch is not None and self._watch.problem is not None:
            return f"{self._watch.problem}: {every}"
        if self._out_of_watches:
            return f"{SENTENCES[Trouble.OUT_OF_WATCHES]}: {every} where it is not watched"
        if self._passing is not None:
            return f"{self._passing}: scanning it again"
        return None

    # The watch

    def _check(self, now: float) -> None:
        """Look whether the root and its watch are what they were, and mend what is not."""
        self._check_due = now + CHECK_SECONDS
        before, self._state = self._state, root_state(self.root.path)
        if self._state is RootState.ONLINE and before is not RootState.ONLINE:
            log.info("online", "the root is back; scanning it again", root=self.name)
            self._doubts.everything = True
            self._scan_not_before = now
        if self._watch is None:
            return
        if not self._opened:
            self._opened = True
            self._open_watch()
        elif (why := self._broken or self._watch.trouble()) is not None:
            self._broken = None
            log.warning("watch_lost", "watching and scanning the root anew", root=self.name, why=why)
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
        # What could not be watched was told meanwhile.
        self._hear(self._hints.take(), clock.monotonic())
        why = SENTENCES[Trouble.OUT_OF_WATCHES] if self._out_of_watches else self._watch.problem
        if why is not None and why != self._told and self._state is RootState.ONLINE:
            log.warning(
                "not_watched",
                "what is not watched is scanned instead",
                root=self.name,
                why=why,
                every_seconds=self.root.rescan_seconds,
            )
        self._told = why

    def _hear(self, taken: Taken, now: float) -> None:
        for path, hint in taken.paths.items():
            if not self._arrivals.hear(path, hint, now):
                self._doubts.add({folder_of(path)})
        self._doubts.add(taken.folders)
        for trouble, times in taken.troubles.items():
            self._hear_trouble(trouble, times)

    def _hear_trouble(self, trouble: Trouble, times: int) -> None:
        match trouble:
            case Trouble.UNMOUNTED | Trouble.LOST:
                self._broken = SENTENCES[trouble]
                self._check_due = 0.0
                return
            case Trouble.OUT_OF_WATCHES:
                if self._out_of_watches:
                    return
                self._out_of_watches = True
            case Trouble.OVERFLOW:
                self.counts.overflows += times
                if self._passing != SENTENCES[trouble]:  # a flood brings hundreds
                    log.warning("overflow", "events were lost; scanning the root again", root=self.name)
                self._passing = SENTENCES[trouble]
            case Trouble.HANDLER:
                self.counts.handler_errors += times
                if self._passing != SENTENCES[trouble]:
                    log.error(
                        "handler", "an event was not understood; scanning the root again", root=self.name
                    )
                self._passing = SENTENCES[trouble]
        self._doubts.everything = True

    # The scans

    def _next_scan(self) -> float:
        return self._scan_not_before if self._doubts.everything and self.scans else self._scan_due

    def _scan_on(self, now: float) -> list[Scan]:
        ended = []
        if self._folder_scan is None and (folder := self._doubts.take_folder()) is not None:
            self._folder_scan = self._begin(folder)
        # What is in a folder that was made or moved here a moment ago need not wait for the great scan.
        if self._folder_scan is not None and self._go_on(self._folder_scan):
            ended.append(self._folder_scan)
            self._folder_scan = None
        if self._scan is None and now >= self._next_scan():
            if self._watch is not None and not (self.watching or (self.scans and self._doubts.everything)):
                self._open_watch()  # perhaps there is room for it by now
            if self.scans:
                self._doubts.everything = False
                self._scan_began = clock.monotonic()
                self._scan = self._begin(b"")
            else:
                self._scan_due = now + self.root.rescan_seconds
        if self._scan is not None and self._go_on(self._scan):
            ended.append(self._scan)
            self._compare_unreadable(set(self._scan.report.unreadable))
            self._scan = None
            after = clock.monotonic()
            self._scan_not_before = after + max(AGAIN_SECONDS, (after - self._scan_began) / 4)
            self._scan_due = after + self.root.rescan_seconds
            if not self._doubts.everything:
                self._passing = None
        return ended

    def _compare_unreadable(self, unreadable: set[str]) -> None:
        """What could not be read could not be watched either."""
        if self._unreadable - unreadable:
            self._broken = "a folder that could not be read can be by now"
            self._check_due = 0.0
        self._unreadable = unreadable

    def _begin(self, folder: bytes) -> Scan:
        scan = Scan(
            self._catalog,
            self.root,
            start=folder,
            priority=PRIORITY_ARRIVAL if folder else PRIORITY_BACKLOG,
            durable=not folder,
            on_batch=self._on_batch,
        )
        if self._watch is not None:
            scan.take_young = self._arrivals.take_young
        return scan

    def _go_on(self, scan: Scan) -> bool:
        """One step of a scan; one that breaks off is due again."""
        try:
            return scan.step()
        except BaseException:
            self._doubts.add({scan.start})
            if scan.start:
                self._folder_scan = None
            else:
                self._scan = None
            raise
