"""The promise, against a small model of it: whatever workers, files and clocks do, every version of every image is
extracted at least once and recorded done exactly once, and a done row names the vector of its own bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from featd.catalog import claim, connect, enqueue, feed, leases, retry, settle
from featd.catalog.enqueue import FoundFile
from featd.catalog.leases import InHand
from featd.catalog.schema import images, shards
from featd.catalog.schema import leases as lease_table
from featd.catalog.settle import Made, Settlement
from featd.errors import LeaseLostError
from featd.states import MAX_KILLS, ClaimedImage, Failure, Kind, Lease, SealedShard, State, Unchanged

PATHS = ["a.jpg", "b.jpg"]
BAD = "a broken picture"

EVENTS = [
    *["work"] * 10,
    *["change"] * 7,
    *["scan"] * 2,
    *["write", "claim", "commit unknown", "die", "lose lease", "remove", "release"],
    *["lost lease", "come back"] * 2,
    *["release_unheld", "rescue", "time_passes", "retry_failed"],
    *["follow"] * 3,
]
"""What can happen, each as often as it stands here."""

paths = st.sampled_from(PATHS)


@dataclass
class Worker:
    """A worker's memory. `sealed` waits for its settle; `lost` is known to the test, not to the worker."""

    lease: Lease
    held: dict[int, ClaimedImage] = field(default_factory=dict)
    sealed: Settlement | None = None
    lost: bool = False


class Promise(RuleBasedStateMachine):
    """Rules are what can happen; invariants are what must hold after each."""

    desk: Any = None
    unknown_commit: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, tuple[int, str]] = {}  # path -> (mtime, content)
        self.away: dict[str, tuple[int, str]] = {}
        self.content_at: dict[tuple[str, int], str] = {}
        self.time = 0
        self.workers: list[Worker] = []
        self.dead: list[tuple[Lease, InHand | None]] = []
        self.store: dict[
            str, list[tuple[int, int, str]]
        ] = {}  # shard -> (image, version, content) of each row
        self.before: dict[int, Any] = {}
        self.done: Counter[tuple[int, int]] = Counter()
        self.index: dict[int, Any] = {}

    @initialize()
    def begin(self) -> None:
        self.desk.number()
        for table in ("images", "leases", "shards", "attempts"):
            self.desk.execute(sa.text(f"DELETE FROM {table}"))
        self.desk.execute(sa.text("UPDATE settings SET number = 0"))
        with connect.reading(self.desk.engine) as conn:
            self.token = feed.now(conn)
        for path in PATHS:
            self.change_and_watch(path, touched=False)

    # Files

    def write(self, path: str, bad: bool) -> None:
        self.time += 1
        self._put(path, BAD if bad else f"bytes {self.time}")

    def change_and_watch(self, path: str, touched: bool) -> None:
        self.time += 1
        same = self.disk.get(path, (0, "the first bytes"))[1]
        self._put(path, same if touched else f"bytes {self.time}")
        self.watch(path)

    def _put(self, path: str, content: str) -> None:
        self.disk[path] = (self.time, content)
        self.content_at[path, self.time] = content

    def remove(self, path: str) -> None:
        if path in self.disk:
            self.away[path] = self.disk.pop(path)

    def come_back(self, path: str) -> None:
        """As it was, to the nanosecond: a disk mounted again, a folder moved out and in."""
        if path not in self.disk and path in self.away:
            self.disk[path] = self.away[path]

    def scan(self) -> None:
        found = [FoundFile(path, 1, mtime) for path, (mtime, _) in self.disk.items()]
        self.desk.do(enqueue.enqueue, self.desk.root, found)
        known = self.desk.do(enqueue.known_files, "", self.desk.root, 100)
        self.desk.do(enqueue.mark_gone, [file.id for file in known if file.path not in self.disk], "vanished")

    def watch(self, path: str) -> None:
        if path in self.disk:
            found = [FoundFile(path, 1, self.disk[path][0])]
            self.desk.do(enqueue.enqueue, self.desk.root, found, priority=10)

    # Workers

    def _worker(self, at: int) -> Worker:
        """One of two that believe in their leases, rightly; a dead one was replaced."""
        able = [worker for worker in self.workers if not worker.lost]
        while len(able) < 2:
            able.append(Worker(self.desk.lease()))
            self.workers.append(able[-1])
        return able[at % 2]

    def claim(self, at: int, limit: int, answer_lost: bool) -> None:
        worker = self._worker(at)
        claimed = self.desk.claim(worker.lease, limit)
        if not answer_lost:
            worker.held |= {image.id: image for image in claimed}

    def _work(self, at: int, io_error: bool) -> None:
        worker = self._worker(at)
        if worker.sealed is not None:
            self._settle(worker)
        elif worker.held:
            self._extract(worker, io_error)
        else:
            worker.held |= {image.id: image for image in self.desk.claim(worker.lease, 2)}

    def release_unheld(self, at: int) -> None:
        worker = self._worker(at)
        self.desk.do(claim.release_unheld, worker.lease, list(worker.held))

    def release(self, at: int) -> None:
        worker = self._worker(at)
        if worker.sealed is None:
            self.desk.do(claim.release, worker.lease, list(worker.held))
            worker.held.clear()

    def extract(self, at: int, io_error: bool) -> None:
        """Read, run the net, seal: the shard is on disk, its rows are not done."""
        worker = self._worker(at)
        if worker.held and worker.sealed is None:
            self._extract(worker, io_error)

    def _extract(self, worker: Worker, io_error: bool = False) -> None:
        if not worker.held:
            return
        made: list[Made] = []
        unchanged: list[Unchanged] = []
        failures: list[Failure] = []
        for image in worker.held.values():
            mtime, content = self.disk.get(image.path, (None, ""))
            if mtime is None:
                failures.append(Failure(image, Kind.READ_MISSING, "no such file"))
            elif mtime != image.mtime_ns:
                failures.append(Failure(image, Kind.READ_CHANGED, "changed", 1, mtime))
            elif content == BAD:
                failures.append(Failure(image, Kind.DECODE_CORRUPT, "broken"))
            elif content == image.known_content:
                unchanged.append(Unchanged(image, content))
            elif io_error:
                failures.append(Failure(image, Kind.READ_IO, "input/output error"))
            else:
                made.append(Made(image, len(made), content))
        shard = None
        if made:
            shard = SealedShard(f"{worker.lease.token}-{len(self.store)}", "path", len(made), 1, "x", "caffe")
            self.store[shard.name] = [(one.image.id, one.image.version, one.content) for one in made]
        worker.sealed = Settlement(shard, made, unchanged, failures)

    def settle(self, at: int, commit: str) -> None:
        worker = self._worker(at)
        if worker.sealed is not None:
            self._settle(worker, commit)

    def _settle(self, worker: Worker, commit: str = "known") -> None:
        assert worker.sealed is not None
        if commit == "known":
            self.desk.do(settle.settle, worker.lease, worker.sealed, self.desk.identity, self.desk.policy)
        else:
            with self.unknown_commit(stands=commit == "unknown, stands"):
                try:
                    self.desk.do(
                        settle.settle, worker.lease, worker.sealed, self.desk.identity, self.desk.policy
                    )
                except connect.CommitUnknownError:
                    pass
                else:
                    raise AssertionError("its outcome was known")
            shard = worker.sealed.shard
            if shard is None or not self.desk.do(settle.find_shard, worker.lease, shard.name):
                self.desk.do(settle.settle, worker.lease, worker.sealed, self.desk.identity, self.desk.policy)
        worker.sealed = None
        worker.held.clear()

    def die(self, at: int, kind: Kind | None, heard: bool) -> None:
        """At any point, also between seal and settle. Its lease stays open until the janitor hears of it."""
        worker = self._worker(at)
        self.workers.remove(worker)
        in_hand = InHand(tuple(worker.held), kind, "signal") if kind and worker.held else None
        self.dead.append((worker.lease, in_hand))
        if heard:
            self.rescue()

    def rescue(self) -> None:
        for lease, in_hand in self.dead:
            self.desk.end(lease, in_hand)
        self.dead.clear()
        for expired in self.desk.do(leases.expired_leases):
            self.desk.end(expired.lease)

    def lose_lease(self, at: int, ended: bool) -> None:
        """The worker was stopped for longer than its lease and does not know."""
        worker = self._worker(at)
        if not worker.held:
            worker.held |= {image.id: image for image in self.desk.claim(worker.lease, 1)}
        worker.lost = True
        self.desk.expire(worker.lease)
        if ended:
            self.desk.end(worker.lease)

    def act_with_a_lost_lease(self, doing: str) -> None:
        worker = next((worker for worker in self.workers if worker.lost), None)
        if worker is None:
            return
        if worker.sealed is None:
            self._extract(worker)
        before = (self.desk.rows(images), self.desk.rows(shards), self.desk.rows(lease_table))
        try:
            match doing:
                case "claim":
                    self.desk.claim(worker.lease)
                case "release":
                    self.desk.do(claim.release, worker.lease, list(worker.held))
                case "renew":
                    self.desk.do(leases.renew, worker.lease, 60.0, {})
                case _ if worker.sealed is not None:
                    self._settle(worker)
                case _:
                    self.desk.claim(worker.lease)
        except LeaseLostError:
            self.workers.remove(worker)
        else:
            raise AssertionError(f"{doing} by a lost lease went through")
        assert (self.desk.rows(images), self.desk.rows(shards), self.desk.rows(lease_table)) == before

    def time_passes(self) -> None:
        """Every back-off is over."""
        past = self.desk.now.replace(year=2000)
        self.desk.execute(sa.update(images).where(images.c.state == State.PENDING).values(not_before=past))

    def retry_failed(self) -> None:
        failed = self.desk.do(retry.failed_after, 0, 100)
        self.desk.do(retry.retry, [image.id for image in failed])

    # One rule for all: with a rule each, most runs would be without one of those that a story needs.

    @rule(event=st.sampled_from(EVENTS), at=st.integers(0, 1), path=paths, chance=st.integers(0, 3))
    def happens(self, event: str, at: int, path: str, chance: int) -> None:
        match event:
            case "work":
                self._work(at, io_error=chance == 3)
            case "change":
                self.change_and_watch(path, touched=chance == 0)
            case "write":
                self.write(path, bad=chance == 0)
            case "claim":
                self.claim(at, 1 + chance, answer_lost=chance == 0)
            case "commit unknown":
                self.settle(at, "unknown, stands" if chance < 2 else "unknown, does not stand")
            case "die":
                self.die(at, (Kind.CRASH, Kind.KILLED, None, None)[chance], heard=chance != 2)
            case "lose lease":
                self.lose_lease(at, ended=chance > 0)
            case "lost lease":
                self.act_with_a_lost_lease(("settle", "settle", "renew", ("claim", "release")[at])[chance])
            case "remove":
                self.remove(path)
                self.scan()
            case "come back":
                self.come_back(path)
                self.scan()
            case "follow":
                self.desk.do(feed.number)
                self.token = self.desk.follow(self.index, self.token, 1 + chance)
            case "release" | "release_unheld":
                getattr(self, event)(at)
            case "scan" | "rescue" | "time_passes" | "retry_failed":
                getattr(self, event)()
            case unknown:
                raise AssertionError(unknown)

    # What must hold

    @invariant()
    def nothing_is_broken(self) -> None:
        self.desk.recount()
        after = {row.id: row for row in self.desk.rows(images)}
        by_id = {shard.id: shard for shard in self.desk.rows(shards)}
        over = {lease.id for lease in self.desk.rows(lease_table) if lease.ended_at is not None}
        for row in after.values():
            before = self.before.get(row.id)
            if row.state == "done":
                made_of = self.store[by_id[row.shard_id].name][row.shard_row]
                assert made_of[0] == row.id
                assert made_of[2] == row.content == self.content_at[row.path, row.mtime_ns]
                assert row.shard_version == row.version
                if before is not None and before.state == "claimed":
                    self.done[row.id, row.version] += 1
                    assert self.done[row.id, row.version] == 1, "recorded done once"
            elif before is not None and before.state == "done":
                assert row.state == "gone" or row.version > before.version, "left done without a reason"
            if row.state == "claimed":
                assert row.lease_id not in over
            if row.state == "failed":
                assert row.error_kind
                assert row.error
            if before is not None:
                assert row.version >= before.version
            assert row.errors <= self.desk.policy.max_errors
            assert row.crashes <= self.desk.policy.max_crashes
            assert row.kills <= MAX_KILLS
        assert set(self.before) <= set(after), "rows are never deleted"
        self.before = after

    def teardown(self) -> None:
        """Faults stop: one good worker brings every image to its end."""
        if self.desk is None:
            return
        for lease in self.desk.rows(lease_table, lease_table.c.ended_at.is_(None)):
            self.desk.end(Lease(lease.id, lease.token))
        worker = Worker(self.desk.lease())
        for _ in range(4):
            self.scan()
            self.time_passes()
            while claimed := self.desk.claim(worker.lease):
                worker.held = {image.id: image for image in claimed}
                self._extract(worker)
                self._settle(worker)
                self.nothing_is_broken()
        self.desk.end(worker.lease)
        for row in self.desk.rows(images):
            mtime, content = self.disk.get(row.path, (None, ""))
            if mtime is None:
                assert row.state == "gone", row
            else:
                assert row.mtime_ns == mtime
                crashed = row.error_kind == "crash"
                assert row.state == ("failed" if content == BAD or crashed else "done"), row
        assert set(self.disk) <= {row.path for row in self.desk.rows(images)}
        self.desk.number()
        while (token := self.desk.follow(self.index, self.token)) != self.token:
            self.token = token
        assert self.index == self.desk.live()


def test_the_promise_holds_whatever_happens(desk: Any, unknown_commit: Any) -> None:
    machine = type(
        "PromiseOnThisDatabase", (Promise,), {"desk": desk, "unknown_commit": staticmethod(unknown_commit)}
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30 if desk.is_sqlite else 12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a failure prints its steps and blob; shrinking would take minutes
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
