"""Simulated seats on one PostgreSQL: all that a seat's processes ask of the catalog, without nets, files and shards.

    python seats.py URL TURNS SECONDS NAME...

A turn stands for five seconds of a seat's life. Seats are threads, here and in other processes, and take their turns as
fast as the machine can. Prints JSON: the turns of each seat, and what went wrong.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import traceback
from typing import Any

import sqlalchemy as sa

from featd.catalog import (
    claim,
    connect,
    counters,
    enqueue,
    feed,
    hosts,
    leases,
    mend,
    retry,
    samples,
    settle,
    stats,
)
from featd.catalog.enqueue import FoundFile
from featd.catalog.leases import InHand
from featd.catalog.settle import Identity, Made, Settlement
from featd.errors import LeaseLostError
from featd.states import ClaimedImage, Failure, Kind, Lease, RetryPolicy, SealedShard, Unchanged

ROOTS = ("/data/a", "/data/b")
DUTIES = [hosts.scan_of(root) for root in ROOTS]
IDENTITY = Identity("f" * 64, {}, {})
POLICY = RetryPolicy(max_errors=2, max_crashes=2, backoff_seconds=0.01)
REPORT = {"watching": 2, "notes": {}, "overflows": 0, "rewatched": 0, "handler_errors": 0}
LEASE_SECONDS = 60.0
NAMES = 4000


class Seat:
    """One worker, ingest and janitor."""

    def __init__(self, catalog: sa.Engine, name: str) -> None:
        self.catalog, self.name = catalog, name
        self.random = random.Random(name)
        self.lease = self._open()
        self.turns = 0
        self.marked = 0

    def _open(self) -> Lease:
        given = {"pid": 1, "device": "cpu:0", "engine": "none", "lease_seconds": LEASE_SECONDS}
        return self._do(leases.open_lease, host=self.name, **given)  # type: ignore[no-any-return]

    def _do(self, work: Any, *arguments: Any, **named: Any) -> Any:
        return connect.transact(self.catalog, work, *arguments, **named)

    def turn(self) -> None:
        self.turns += 1
        try:
            self._ingest()
            self._work()
            self._tidy()
        except LeaseLostError:  # another seat ended it: see _tidy
            self.lease = self._open()

    def _ingest(self) -> None:
        held = self._do(hosts.take_duties, DUTIES, self.name, LEASE_SECONDS)
        self._do(hosts.report_ingest, self.name, REPORT, LEASE_SECONDS)
        if self.random.random() < 0.1:
            self._do(hosts.ask_for, DUTIES)
        for duty in held:
            self._arrive(duty.partition(".")[2], self.random.randrange(100))
        if self.random.random() < 0.2:
            self._arrive(self.random.choice(ROOTS), 3)

    def _arrive(self, root: str, count: int) -> None:
        names = [f"{self.random.randrange(NAMES):04}.jpg" for _ in range(count)]
        found = [FoundFile(name, self.random.randrange(1, 3), 1) for name in dict.fromkeys(names)]
        self._do(enqueue.enqueue, root, found)
        if self.random.random() < 0.2 and found:
            with connect.reading(self.catalog) as conn:
                known = enqueue.known_at(conn, root, [file.path for file in found[:3]])
            self._do(enqueue.mark_gone, [file.id for file in known], "vanished")

    def _work(self) -> None:
        self._do(leases.renew, self.lease, LEASE_SECONDS, {})
        claimed = self._do(claim.claim, self.lease, self.random.randrange(1, 40), ROOTS)
        self.random.shuffle(claimed)
        made: list[ClaimedImage] = []
        unchanged: list[Unchanged] = []
        failures: list[Failure] = []
        back: list[int] = []
        for image in claimed:
            chance = self.random.random()
            if image.known_content is not None and chance < 0.5:
                unchanged.append(Unchanged(image, image.known_content))
            elif chance < 0.8:
                made.append(image)
            elif chance < 0.95:
                failures.append(Failure(image, self.random.choice(list(Kind)), "", 5, 5))
            else:
                back.append(image.id)
        name = f"{self.lease.token}-{self.turns}"
        shard = SealedShard(name, f"shards/{name}", len(made), 1, "", "none") if made else None
        rows = [Made(image, at, f"content {image.id} {image.size}") for at, image in enumerate(made)]
        self._do(settle.settle, self.lease, Settlement(shard, rows, unchanged, failures), IDENTITY, POLICY)
        self._do(claim.release, self.lease, back)
        if self.random.random() < 0.02:
            self._die(self._do(claim.claim, self.lease, 3, ROOTS))

    def _die(self, claimed: list[ClaimedImage]) -> None:
        in_hand = InHand(tuple(image.id for image in claimed), Kind.CRASH, "") if claimed else None
        self._do(leases.end_lease, self.lease, "died", POLICY, in_hand)
        self.lease = self._open()

    def _tidy(self) -> None:
        for found in self._do(leases.expired_leases):
            self._do(leases.end_lease, found.lease, "expired", POLICY)
        if hosts.TIDY in self._do(hosts.take_duties, [hosts.TIDY], self.name, LEASE_SECONDS):
            while self._do(feed.number):
                pass
            self._do(samples.take)
            self._do(mend.mend_far_future)
        with connect.reading(self.catalog) as conn:
            counted = counters.counts(conn)
            stats.workers(conn)
        assert min(counted.values()) >= 0, counted
        if self.random.random() < 0.05:
            failed = self._do(retry.failed_after, 0, 100)
            self._do(retry.retry, [image.id for image in failed])
        if self.random.random() < 0.02:  # a janitor that thinks that a seat is dead
            others = [one for one in self._do(leases.all_open) if one.id != self.lease.id]
            if others:
                self._do(leases.end_lease, self.random.choice(others), "taken for dead", POLICY)


def live(url: str, turns: int, seconds: float, names: list[str]) -> tuple[list[int], list[str]]:
    """These seats' lives, of so many turns or seconds: the turns of each, and what went wrong."""
    catalog = connect.open_catalog(url)
    until = time.monotonic() + seconds
    done: list[int] = []
    failures: list[str] = []

    def life(name: str) -> None:
        try:
            seat = Seat(catalog, name)
            while seat.turns < turns and time.monotonic() < until and not failures:
                seat.turn()
            done.append(seat.turns)
            connect.transact(catalog, leases.end_lease, seat.lease, "stopped", POLICY)
        except BaseException:
            failures.append(f"{name}: {traceback.format_exc()}")

    threads = [threading.Thread(target=life, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog.dispose()
    return done, failures


if __name__ == "__main__":
    print(json.dumps(live(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])))
