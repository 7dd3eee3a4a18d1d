"""The ingest child: scans the roots at start and again every rescan_seconds, and wakes the workers."""

from __future__ import annotations

import select

from featd import clock, logs
from featd.catalog import connect
from featd.catalog.enqueue import Enqueued
from featd.config import RootConfig, Settings
from featd.errors import CatalogUnavailableError
from featd.ingest.scan import ScanReport, scan_root
from featd.link import ChildLink
from featd.signals import StopFlag

log = logs.get("ingest")

SCAN_BEAT_SECONDS = 600.0
"""A batch of files that takes longer than this to enqueue is a hang (a dead network mount)."""


class Ingest:
    """Scans each root when it is due."""

    def __init__(self, settings: Settings, link: ChildLink) -> None:
        self._catalog = connect.open_catalog(settings.catalog.url, settings.workers.lease_seconds)
        self._link = link
        self._due: dict[RootConfig, float] = dict.fromkeys(settings.roots, 0.0)

    def step(self, now: float) -> list[ScanReport]:
        """Scan the roots that are due."""
        reports = []
        for root, due in self._due.items():
            if now < due:
                continue
            self._link.beat(SCAN_BEAT_SECONDS)
            report = scan_root(self._catalog, root, on_batch=self._on_batch)
            self._due[root] = clock.monotonic() + root.rescan_seconds
            reports.append(report)
            log.info(
                "scanned",
                "its images stand in the catalog",
                root=report.root,
                files=report.files,
                new=report.enqueued.new,
                changed=report.enqueued.changed,
                returned=report.enqueued.returned,
                gone=report.gone,
            )
            self._link.wake_others()
        return reports

    def seconds_to_next(self, now: float) -> float:
        return max(0.0, min(self._due.values(), default=now + 60.0) - now)

    def _on_batch(self, enqueued: Enqueued) -> None:
        self._link.beat(SCAN_BEAT_SECONDS)
        if enqueued.new or enqueued.changed or enqueued.returned:
            self._link.wake_others()

    def close(self) -> None:
        self._catalog.dispose()


def run(link: ChildLink, settings: Settings, *, once: bool) -> int:
    """The child's life: `once` scans every root one time and ends."""
    stop = StopFlag()
    ingest = Ingest(settings, link)
    link.report("ready")
    while not stop.stopping:
        try:
            ingest.step(clock.monotonic())
        except CatalogUnavailableError as error:
            log.warning("out_of_reach", "scanning again in 5 s", error=str(error))
            _sleep(stop, link, 5.0)
            continue
        if once:
            break
        _sleep(stop, link, ingest.seconds_to_next(clock.monotonic()))
    ingest.close()
    return 0


def _sleep(stop: StopFlag, link: ChildLink, seconds: float) -> None:
    """Until `seconds` have passed or the child is told to stop; beats meanwhile."""
    end = clock.monotonic() + seconds
    while not stop.stopping and (left := end - clock.monotonic()) > 0:
        link.beat(60.0)
        select.select([stop], [], [], min(left, 10.0))
