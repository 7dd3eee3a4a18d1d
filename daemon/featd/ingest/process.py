"""The ingest child: watches and scans the roots, and wakes the workers. One turn for all roots is `step`.

Of several hosts each watches, and of each root one scans: whoever holds that duty.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, hosts
from featd.catalog.enqueue import Enqueued
from featd.errors import CatalogUnavailableError
from featd.ingest.plan import IngestPlan
from featd.ingest.root import RootIngest
from featd.ingest.scan import Scan, ScanReport
from featd.paths import to_catalog
from featd.processes.link import ChildLink
from featd.processes.records import Ready
from featd.processes.signals import StopFlag

log = logs.get("ingest")

SCAN_BEAT_SECONDS = 600.0
"""A turn that takes longer than this is a hang (a dead network mount)."""
REPORT_SECONDS = 1.0
"""Between two changes of what the status shows."""
RENEW_SECONDS = 5.0
"""Between two looks at who scans; at most a third of what a duty lasts, which is as long as a lease."""
COUNTS = ("overflows", "rewatched", "handler_errors")


class Ingest:
    """All roots, a turn at a time. `once`: each is scanned one time, whoever else scans, and none is watched."""

    def __init__(self, plan: IngestPlan, link: ChildLink) -> None:
        self._catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        self._link = link
        self._host = plan.host
        self._once = plan.once
        self._lasts_seconds = plan.lease_seconds
        self._renew_due = 0.0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._roots = [
            RootIngest(self._catalog, root, watched=not plan.once, wake=self._wake, on_batch=self._on_batch)
            for root in plan.roots
        ]
        self._scanned: set[str] = set()
        self._times_asked: dict[str, int] = {}
        self._before: dict[str, int] | None = None
        """What the processes before this one counted, once it was read."""
        self._reported: dict[str, Any] | None = None
        self._report_due = 0.0

    @property
    def all_scanned(self) -> bool:
        """Whether each root was scanned since the start."""
        return len(self._scanned) == len(self._roots)

    def fileno(self) -> int:
        """Readable when the watch has something to say."""
        return self._wake_fd

    def step(self, now: float) -> list[ScanReport]:
        """One turn for each root; returns the scans of whole roots that ended in it."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        if now >= self._renew_due:
            self._renew(now)
        ended = []
        for root in self._roots:
            self._link.beat(SCAN_BEAT_SECONDS)
            for scan in root.step(now):
                self._tell(scan)
                if not scan.start:
                    self._scanned.add(root.name)
                    ended.append(scan.report)
        self._tell_of_itself(now)
        return ended

    def seconds_to_next(self, now: float) -> float:
        """Until a turn is due although the watch says nothing."""
        soonest = min((root.next_due(now) for root in self._roots), default=now + 60.0)
        if self._report() != self._reported:
            soonest = min(soonest, self._report_due)
        return max(0.0, min(soonest, self._renew_due) - now)

    def close(self) -> None:
        for root in self._roots:
            root.close()
        if self._before is not None:  # else it has told nothing, and would forget what was counted before
            with contextlib.suppress(CatalogUnavailableError):
                connect.transact(self._catalog, self._leave)
        self._catalog.dispose()
        os.close(self._wake_fd)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is readable; closed: nobody listens
            os.eventfd_write(self._wake_fd, 1)

    def _on_batch(self, enqueued: Enqueued) -> None:
        self._link.beat(SCAN_BEAT_SECONDS)
        if enqueued.any:
            self._link.wake_others()

    def _tell(self, scan: Scan) -> None:
        report = scan.report
        tell = log.debug if scan.start else log.info
        tell(
            "scanned",
            "its images stand in the catalog",
            root=report.root,
            folder=to_catalog(scan.start),
            files=report.files,
            new=report.enqueued.new,
            changed=report.enqueued.changed,
            returned=report.enqueued.returned,
            gone=report.gone,
        )
        if not scan.start:
            self._link.wake_others()

    # What other hosts and the status are told

    def _renew(self, now: float) -> None:
        """Say that this host is there still, and learn which roots it scans: those that no other does."""
        if self._before is None:
            self._before = connect.transact(self._catalog, self._read_before)
        online = {root.duty for root in self._roots if root.online}
        offline = {root.duty for root in self._roots} - online
        # Also of roots that this host scanned until now: with the duty goes what it knew.
        doubted = {root.duty for root in self._roots if root.in_doubt}
        report = self._report()

        def work(conn: sa.Connection) -> dict[str, int]:
            held: set[str] = set()
            if not self._once:
                held = hosts.take_duties(conn, online, self._host, self._lasts_seconds, leave=offline)
                hosts.ask_for(conn, doubted - held)
            hosts.report_ingest(conn, self._host, report, self._lasts_seconds)
            return hosts.times_asked(conn, held)

        held = connect.transact(self._catalog, work)
        self._renew_due = now + min(RENEW_SECONDS, self._lasts_seconds / 3)
        self._reported = report
        if not self._once:
            self._share_out(held, doubted)

    def _read_before(self, conn: sa.Connection) -> dict[str, int]:
        """What this host counted before: counts go on from where the last process left them."""
        last = hosts.ingest_reports(conn).get(self._host)
        hosts.forget_reports(conn, self._host)
        return {name: 0 if last is None else last.report[name] for name in COUNTS}

    def _share_out(self, held: dict[str, int], doubted: set[str]) -> None:
        """Scan where the duty is held, and soon where it was asked for since; `held` says how often, ever."""
        for root in self._roots:
            if root.scans != (root.duty in held):
                self._tell_of_duty(root)
            if root.duty not in held:
                root.stand_by()
                if root.duty in doubted:
                    root.leave_doubt()
            elif not root.scans or held[root.duty] != self._times_asked.get(root.duty):
                root.scan_soon()
        self._times_asked = held

    def _tell_of_duty(self, root: RootIngest) -> None:
        if not root.online:
            log.warning(
                "offline", "left alone here until it is back; another host may scan it", root=root.name
            )
        elif root.scans:
            log.info("duty", "another host scans; this one watches", root=root.name, scans=False)
        else:
            log.info("duty", "this host scans", root=root.name, scans=True)

    def _report(self) -> dict[str, Any]:
        before = self._before or {}
        report: dict[str, Any] = {
            "watching": sum(root.watching for root in self._roots),
            "notes": {root.name: root.note for root in self._roots if root.note is not None},
        }
        for name in COUNTS:
            report[name] = before.get(name, 0) + sum(getattr(root.counts, name) for root in self._roots)
        return report

    def _tell_of_itself(self, now: float) -> None:
        """Write what changed into the catalog."""
        report = self._report()
        if now < self._report_due or report == self._reported:
            return
        connect.transact(
            self._catalog, lambda conn: hosts.report_ingest(conn, self._host, report, self._lasts_seconds)
        )
        self._reported = report
        self._report_due = now + REPORT_SECONDS

    def _leave(self, conn: sa.Connection) -> None:
        """Hold nothing any more, and count as live no more."""
        if not self._once:
            hosts.leave_duties(conn, [root.duty for root in self._roots], self._host)
        hosts.report_ingest(conn, self._host, self._report(), 0.0)


def run(link: ChildLink, plan: IngestPlan) -> int:
    """The child's life."""
    stop = StopFlag()
    ingest = Ingest(plan, link)
    link.report(Ready())
    while not stop.stopping:
        try:
            ingest.step(clock.monotonic())
        except CatalogUnavailableError as error:
            log.warning("out_of_reach", "looking again in 5 s", error=str(error))
            _sleep(stop, link, 5.0)
            continue
        if plan.once and ingest.all_scanned:
            break
        _sleep(stop, link, ingest.seconds_to_next(clock.monotonic()), ingest.fileno())
    ingest.close()
    return 0


def _sleep(stop: StopFlag, link: ChildLink, seconds: float, *wake_fds: int) -> None:
    """Until `seconds` have passed, a descriptor is readable, or the child is told to stop; beats meanwhile."""
    end = clock.monotonic() + seconds
    while not stop.stopping and (left := end - clock.monotonic()) > 0:
        link.beat(60.0)
        awake, _, _ = select.select([stop.fileno(), *wake_fds], [], [], min(left, 10.0))
        if awake:
            return
