"""The janitor process: ends leases of dead workers, removes leftovers, and says when a drain is over."""

from __future__ import annotations

import contextlib
import select
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from featd import clock, logs
from featd.catalog import connect, counters, feed, forget, hosts, mend, pairing, samples, stats
from featd.errors import CatalogUnavailableError
from featd.janitor import drain, holds, old_seats
from featd.janitor.compaction import Compaction
from featd.janitor.holds import Paused, Room
from featd.janitor.indexing import Indexing
from featd.janitor.leftovers import Leftovers
from featd.janitor.plan import JanitorPlan
from featd.janitor.purge import purging
from featd.janitor.rescue import Cause, Rescue
from featd.janitor.slow_round import SlowRound
from featd.janitor.task import Task
from featd.processes.last_words import telling
from featd.processes.link import ChildLink
from featd.processes.records import Death, Ready, StatusLine, Why
from featd.processes.signals import StopFlag
from featd.shards.store import read_mark, write_mark
from featd.states import Kind, State

if TYPE_CHECKING:
    from featd.janitor.forgetting import Forgetting

log = logs.get("janitor")

EXPIRED_EVERY_SECONDS = 5.0
DUTY_EVERY_SECONDS = 5.0
HOLDS_EVERY_SECONDS = 1.0
FEED_EVERY_SECONDS = 0.5
FEED_FORGET_SECONDS = 3600.0
SEATS_EVERY_SECONDS = 86_400.0
STATUS_EVERY_SECONDS = 3.0
MEND_EVERY_SECONDS = 60.0
SAMPLE_EVERY_SECONDS = 60.0
LEFTOVERS_EVERY_SECONDS = 600.0
COMPACT_EVERY_SECONDS = 60.0
PURGE_EVERY_SECONDS = 86_400.0
PURGE_FIRST_SECONDS = 3600.0
ROUND_EVERY_SECONDS = 10.0
ROUND_RESTS = 9
"""The slow round takes a tenth of the disk's time."""
DRAIN_EVERY_SECONDS = 0.2
BEAT_SECONDS = 300.0


class Janitor:
    """Each task has its own interval; `step` does those that are due."""

    def __init__(self, plan: JanitorPlan, link: ChildLink) -> None:
        self._plan = plan
        self._link = link
        self._host = plan.seat
        self._tidies = False
        self._draining = plan.draining
        self._scanned = not plan.scans
        self._heard: deque[Death] = deque()
        self._store = plan.store.path
        self._catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        leftovers = Leftovers(
            self._catalog, plan.store.path, plan.store.keep_unknown_days, plan.store.min_free
        )
        self._leftovers = Task("the look for leftovers", leftovers.look, LEFTOVERS_EVERY_SECONDS)
        slow_round = SlowRound(self._catalog, plan.store.path, plan.store.verify_days)
        self._compaction = Compaction(self._catalog, plan.store, plan.seat, plan.lease_seconds)
        self._forgetting: Forgetting | None = None
        self._tasks = [
            self._leftovers,
            Task("the oldest changes", self._forget_changes, FEED_FORGET_SECONDS),
            Task("the comparison of shards", slow_round.look, ROUND_EVERY_SECONDS, rests=ROUND_RESTS),
        ]
        if not plan.draining:
            self._tasks += [
                Task(
                    "the merging of shards",
                    self._forget_and_compact,
                    COMPACT_EVERY_SECONDS,
                    first_seconds=COMPACT_EVERY_SECONDS,
                ),
                Task(
                    "the purge of rows",
                    lambda: purging(self._catalog, plan.purge_gone_days),
                    PURGE_EVERY_SECONDS,
                    first_seconds=PURGE_FIRST_SECONDS,
                ),
            ]
        self._indexing = Indexing(self._catalog, plan) if plan.search else None
        self._marked = read_mark(plan.store.path)
        self._holds = (
            Paused(self._catalog, plan.seat),
            Room(self._catalog, plan.store.path, plan.store.min_free),
        )
        self._rescue = Rescue(self._catalog, plan.run_folder, plan.seat, plan.retry, plan.seat_key)
        self._due = dict.fromkeys(
            ("holds", "seats", "feed", "status", "expired", "duty", "mend", "sample", "drain"), 0.0
        )

    def begin(self) -> None:
        """Before any worker claims."""
        self._rescue.end_all_of_this_seat()
        self._drain_start = drain.begin(self._catalog)

    def step(self, now: float) -> None:
        """Hear of deaths, then do what is due."""
        # A record leaves the list after it is handled: an outage of the catalog must not lose it or those behind it.
        self._heard.extend(one for one in self._link.inbox.receive() if isinstance(one, Death))
        while self._heard:
            self._hear(self._heard[0])
            self._heard.popleft()
        if self._is_due("holds", now, HOLDS_EVERY_SECONDS):
            for hold in self._holds:
                hold.look(now)
        if self._is_due("seats", now, SEATS_EVERY_SECONDS):
            old_seats.tidy(self._plan.run_folder)
        if self._is_due("status", now, STATUS_EVERY_SECONDS):
            self._link.report(StatusLine(self._status()))
        if self._is_due("expired", now, EXPIRED_EVERY_SECONDS):
            self._rescue.end_expired()
        lease_seconds = self._plan.lease_seconds
        if self._is_due("duty", now, min(DUTY_EVERY_SECONDS, lease_seconds / 3)):
            held = connect.transact(self._catalog, hosts.take_duties, [hosts.TIDY], self._host, lease_seconds)
            self._tidies = hosts.TIDY in held
            if self._tidies:
                self._keep_mark()
        # The janitor of one host does these for all hosts.
        if self._tidies and self._is_due("feed", now, FEED_EVERY_SECONDS):
            self._number_changes()
        if self._tidies and self._is_due("mend", now, MEND_EVERY_SECONDS):
            connect.transact(self._catalog, mend.mend_retired)
            mended = connect.transact(self._catalog, mend.mend_far_future)
            self._due["mend"] = 0.0 if mended == mend.MEND_ROWS else self._due["mend"]  # there may be more
        if self._tidies and self._is_due("sample", now, SAMPLE_EVERY_SECONDS):
            connect.transact(self._catalog, samples.take)
        for task in self._tasks:
            if self._tidies:
                task.step(now)
            else:
                task.stop()
        if self._indexing is not None:
            self._indexing.step(now) if self._tidies else self._indexing.stop()
        if self._draining and self._scanned and self._is_due("drain", now, DRAIN_EVERY_SECONDS):
            end = drain.look(
                self._catalog,
                self._host,
                self._plan.roots,
                self._drain_start,
                holds.ends_drain(self._holds, now),
            )
            if end is not None:
                self._link.report(end)
                self._draining = False

    def _forget_and_compact(self) -> Generator[None]:
        """What `featd forget` has begun and not finished comes first."""
        with connect.reading(self._catalog) as conn:
            noted = forget.read(conn) is not None
        if noted:
            from featd.janitor.forgetting import Forgetting  # here: it loads HDF5

            self._forgetting = self._forgetting or Forgetting(
                self._catalog, self._plan.store, self._host, self._plan.lease_seconds
            )
            yield from self._forgetting.work()
        yield from self._compaction.work()

    def _number_changes(self) -> None:
        """Number what was committed, so that readers of the feed see it."""
        with connect.reading(self._catalog) as conn:
            numbered = feed.is_numbered(conn)
        while not numbered:
            numbered = connect.transact(self._catalog, feed.number) < feed.NUMBERED

    def _forget_changes(self) -> Generator[None]:
        while connect.transact(self._catalog, feed.forget_old, self._plan.feed_days) == feed.NUMBERED:
            yield

    def _keep_mark(self) -> None:
        """Note in the store how far the catalog has come, so that one that is restored later is noticed; and answer a
        host that starts and asks whether it has the same store."""
        with connect.reading(self._catalog) as conn:
            mark = pairing.mark_of(conn)
        if mark.newest_shard > self._marked.newest_shard or mark.asked > self._marked.asked:
            try:
                write_mark(self._store, mark)
            except OSError as error:
                log.warning("mark_not_written", "cannot write into the store", error=error.strerror)
                return
            self._marked = mark

    def stop_draining(self) -> None:
        """The drain is over; report its end no more."""
        self._draining = False

    def _is_due(self, duty: str, now: float, every_seconds: float) -> bool:
        if now < self._due[duty]:
            return False
        self._due[duty] = now + every_seconds
        return True

    def _hear(self, death: Death) -> None:
        if death.why is Why.FINISHED:
            self._scanned = self._scanned or death.child == "ingest"
            return
        if death.lease is None:
            return
        self._rescue.end(death.lease, cause_of(death))
        # The worker may have left an unfinished shard. Where another host tidies, that host finds it at its next look;
        # until then the leftover only takes room on the disk.
        self._leftovers.hurry()
        self._link.wake_others()

    def _status(self) -> str:
        """One line for `systemctl status`."""
        with connect.reading(self._catalog) as conn:
            counts = counters.counts(conn)
            workers = stats.workers(conn)
        open_rows = counts[State.PENDING] + counts[State.CLAIMED]
        rate = sum(float(worker.shares.get("images_per_second", 0.0)) for worker in workers)
        paused, no_room = (hold.status for hold in self._holds)
        told = (
            paused,
            f"{counts[State.DONE]:,} images done, {open_rows:,} to do, {counts[State.FAILED]:,} failed",
            f"{rate:,.1f} images/s by {len(workers)} {'worker' if len(workers) == 1 else 'workers'}",
            no_room,
        )
        return "; ".join(text for text in told if text)

    def close(self) -> None:
        for task in self._tasks:
            task.stop()
        if self._indexing is not None:
            self._indexing.stop()
        with contextlib.suppress(CatalogUnavailableError):
            if self._tidies:
                self._number_changes()
                self._keep_mark()
            connect.transact(self._catalog, hosts.leave_duties, [hosts.TIDY], self._host)
        self._catalog.dispose()


def cause_of(death: Death) -> Cause:
    """What a death means for the images that its worker had in hand."""
    kinds = {Why.CRASH: Kind.CRASH, Why.KILLED: Kind.KILLED}
    words = ""
    with contextlib.suppress(OSError):
        words = telling(Path(death.words).read_text(encoding="utf-8"))
    return Cause(kinds.get(death.why), f"{death.what}; its last words: {words}" if words else death.what)


def run(link: ChildLink, plan: JanitorPlan) -> int:
    """The child's life."""
    stop = StopFlag()
    janitor = Janitor(plan, link)
    janitor.begin()
    link.report(Ready())
    while True:
        link.beat(BEAT_SECONDS)
        # The workers' deaths are in the inbox before the supervisor asks the janitor to stop.
        last_turn = stop.stopping
        if last_turn:
            janitor.stop_draining()
        try:
            janitor.step(clock.monotonic())
        except CatalogUnavailableError as error:
            log.warning(
                "janitor_waits",
                "cannot reach the catalog; trying again in 2 s, and leases expire by themselves meanwhile",
                error=str(error),
            )
            select.select([stop], [], [], 2.0)
        if last_turn:
            break
        select.select(
            [stop.fileno(), link.inbox.read_fd], [], [], DRAIN_EVERY_SECONDS if plan.draining else 1.0
        )
    janitor.close()
    return 0
