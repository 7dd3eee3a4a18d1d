"""The ingest process: watches and scans the roots, and wakes the workers. `step` is one turn for all roots.

With several hosts, each of them watches every root, and the one that has the scan duty of a root scans it.
"""

from __future__ import annotations

import contextlib
import os
import select
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, hosts
from featd.catalog.enqueue import Enqueued
from featd.errors import CatalogUnavailableError
from featd.ingest.plan import IngestPlan
from featd.ingest.root import RootIngest
from featd.ingest.scan import Scan
from featd.ingest.scan_report import ScanReport
from featd.paths import to_catalog
from featd.processes.link import ChildLink
from featd.processes.records import Ready
from featd.processes.signals import StopFlag
from featd.roots import RootState

log = logs.get("ingest")

SCAN_BEAT_SECONDS = 600.0
"""A turn that takes longer than this hangs, for example on a dead network mount."""
TURN_SECONDS = 5.0
"""The others go on where a root's turn takes longer."""
REPORT_SECONDS = 1.0
"""Between two updates of what status shows."""
RENEW_SECONDS = 5.0
"""Between two renewals of the scan duties; at most a third of their time, which is that of a lease."""
COUNTS = ("overflows", "rewatched", "handler_errors")


class Ingest:
    """All roots, one turn at a time."""

    def __init__(self, plan: IngestPlan, link: ChildLink) -> None:
        self._catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        self._link = link
        self._host = plan.seat
        self._once = plan.once
        self._lasts_seconds = plan.lease_seconds
        self._renew_due = 0.0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.roots = [
            RootIngest(self._catalog, root, watched=not plan.once, wake=self._wake, on_batch=self._on_batch)
            for root in plan.roots
        ]
        self._threads = ThreadPoolExecutor(max(1, len(plan.roots)), "root")
        self._late: dict[str, tuple[Future[list[Scan]], float]] = {}
        """Roots whose turn is not over, with its beginning."""
        self._scanned: set[str] = set()
        self._times_asked: dict[str, int] = {}
        self._before: dict[str, int] | None = None
        """What earlier ingest processes of this host counted; None until it is read."""
        self._reported: dict[str, Any] | None = None
        self._report_due = 0.0

    @property
    def all_scanned(self) -> bool:
        """Whether each root was scanned since the start, and what was in doubt was read."""
        in_question = any(root.in_question for root in self.roots if root.name not in self._late)
        return len(self._scanned) == len(self.roots) and not in_question

    def fileno(self) -> int:
        """Readable when the watch has something to report."""
        return self._wake_fd

    def step(self, now: float) -> list[ScanReport]:
        """One turn for each root; returns the scans of whole roots that ended in it."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        if now >= self._renew_due:
            self._renew(now)
        ended = []
        for root in self.roots:
            self._link.beat(SCAN_BEAT_SECONDS)
            for scan in self._turn(root, now):
                self._tell(scan)
                if not scan.start:
                    self._scanned.add(root.name)
                    ended.append(scan.report)
        self._tell_of_itself(now)
        return ended

    def _turn(self, root: RootIngest, now: float) -> list[Scan]:
        """One turn of a root, in a thread of its own: a dead mount blocks nothing else. Empty until it is over."""
        late = self._late.pop(root.name, None)
        turn, since = late or (self._threads.submit(root.step, now), now)
        if wait([turn], 0.0 if late else TURN_SECONDS).done:
            if late:
                log.info("root_answered", "root answers again", root=root.name)
            return turn.result()
        if not late:
            log.warning(
                "root_silent", "disk or database of a root does not answer; the others go on", root=root.name
            )
        self._late[root.name] = (turn, since)
        if self._once and now - since > SCAN_BEAT_SECONDS:
            self._scanned.add(root.name)  # the end of the drain names it
        return []

    def seconds_to_next(self, now: float) -> float:
        """Seconds until the next turn, if the watch reports nothing before."""
        ready = [root.next_due(now) for root in self.roots if root.name not in self._late]
        soonest = min(ready, default=now + 60.0)
        if self._late:
            soonest = min(soonest, now + 1.0)
        if self._report() != self._reported:
            soonest = min(soonest, self._report_due)
        return max(0.0, min(soonest, self._renew_due) - now)

    def close(self) -> None:
        self._threads.shutdown(wait=not self._late, cancel_futures=True)
        for root in self.roots:
            if root.name not in self._late:
                root.close()
        if self._before is not None:  # else nothing was reported yet, and earlier counts would be lost
            with contextlib.suppress(CatalogUnavailableError):
                connect.transact(self._catalog, self._leave)
        self._catalog.dispose()
        os.close(self._wake_fd)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is readable already; closed: nobody reads it
            os.eventfd_write(self._wake_fd, 1)

    def _on_batch(self, enqueued: Enqueued) -> None:
        self._link.beat(SCAN_BEAT_SECONDS)
        if enqueued.any:
            self._link.wake_others()

    def _tell(self, scan: Scan) -> None:
        report = scan.report
        if report.state is RootState.ONLINE:
            tell = log.debug if scan.start else log.info
            tell(
                "scan_finished",
                "scan finished",
                folder="/".join([report.root, to_catalog(scan.start)]).rstrip("/"),
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
        """Renew this host's report and its scan duties; learn which roots it scans."""
        if self._before is None:
            self._before = connect.transact(self._catalog, self._read_before)
        ready = [root for root in self.roots if root.name not in self._late]
        online = {root.duty for root in ready if root.online}
        offline = {root.duty for root in self.roots} - online
        # Also for roots that this host has scanned until now: with the duty it loses what it knew.
        doubted = {root.duty for root in ready if root.in_doubt}
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
        """The counts of earlier processes of this host, which this one continues."""
        last = hosts.ingest_reports(conn).get(self._host)
        hosts.forget_reports(conn, self._host)
        return {name: 0 if last is None else last.report[name] for name in COUNTS}

    def _share_out(self, held: dict[str, int], doubted: set[str]) -> None:
        """Scan the roots whose duty this host holds, soon where a host asked for it. `held`: duty -> times asked."""
        for root in self.roots:
            if root.name in self._late:
                continue
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
                "scan_duty_left", "root is offline here; any host that has it may scan it", root=root.name
            )
        elif root.scans:
            log.info(
                "scan_duty_lost", "another host scans this root; this host only watches it", root=root.name
            )
        else:
            log.info("scan_duty_taken", "this host scans this root", root=root.name)

    def _report(self) -> dict[str, Any]:
        before = self._before or {}
        notes = {root.name: note for root in self.roots if (note := root.note) is not None}
        report: dict[str, Any] = {
            "watching": sum(root.watching for root in self.roots),
            "ignored": {root.name: dict(root.last.ignored) for root in self.roots if root.last.ignored},
            "left_out": sum(len(root.unreadable) for root in self.roots),
            "held": [root.name for root in self.roots if root.last.held or root.last.away],
            "notes": {
                **notes,
                **dict.fromkeys(
                    self._late,
                    "its disk or the database does not answer: images of this root keep their state",
                ),
            },
        }
        for name in COUNTS:
            report[name] = before.get(name, 0) + sum(getattr(root.counts, name) for root in self.roots)
        return report

    def _tell_of_itself(self, now: float) -> None:
        """Store the report in the catalog where it has changed."""
        report = self._report()
        if now < self._report_due or report == self._reported:
            return
        connect.transact(self._catalog, hosts.report_ingest, self._host, report, self._lasts_seconds)
        self._reported = report
        self._report_due = now + REPORT_SECONDS

    def _leave(self, conn: sa.Connection) -> None:
        """Give up all duties, and let the report end."""
        if not self._once:
            hosts.leave_duties(conn, [root.duty for root in self.roots], self._host)
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
            log.warning("ingest_waits", "cannot reach the catalog; trying again in 5 s", error=str(error))
            _sleep(stop, link, 5.0)
            continue
        if plan.once and ingest.all_scanned:
            break
        _sleep(stop, link, ingest.seconds_to_next(clock.monotonic()), ingest.fileno())
    ingest.close()
    return 0


def _sleep(stop: StopFlag, link: ChildLink, seconds: float, *wake_fds: int) -> None:
    """Sleep for `seconds`, or until a descriptor is readable or the process is told to stop. Beats meanwhile."""
    end = clock.monotonic() + seconds
    while not stop.stopping and (left := end - clock.monotonic()) > 0:
        link.beat(60.0)
        awake, _, _ = select.select([stop.fileno(), *wake_fds], [], [], min(left, 10.0))
        if awake:
            return
