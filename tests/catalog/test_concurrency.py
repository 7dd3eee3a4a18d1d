"""Everything at once: workers, ingest and the janitor on one catalog, without a deadlock and with exact counters."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from featd.catalog import claim, leases, mend, retry
from featd.catalog.leases import InHand
from featd.errors import LeaseLostError
from featd.states import Failure, Kind

SECONDS = 3.0
SEED = 20261124


def _worker(desk: Any, seed: int, until: float) -> None:
    random_ = random.Random(seed)
    lease = desk.lease(device=f"cpu:{seed}")
    while time.monotonic() < until:
        try:
            claimed = desk.claim(lease, random_.randint(1, 12))
            random_.shuffle(claimed)
            cut = random_.randint(0, len(claimed))
            failures = [Failure(image, random_.choice(list(Kind)), "", 5, 5) for image in claimed[cut:]]
            match random_.randrange(4):
                case 0:
                    desk.do(claim.release, lease, [image.id for image in claimed])
                case 1:
                    desk.do(leases.renew, lease, 60.0, {})
                case _:
                    desk.settle(
                        lease, claimed[:cut], failures=failures, shard=f"{lease.token}-{time.monotonic_ns()}"
                    )
            if random_.random() < 0.1:
                desk.end(lease)
                lease = desk.lease(device=f"cpu:{seed}")
        except LeaseLostError:
            lease = desk.lease(device=f"cpu:{seed}")


def _ingest(desk: Any, seed: int, until: float) -> None:
    random_ = random.Random(seed)
    while time.monotonic() < until:
        paths = random_.sample([f"{n}.jpg" for n in range(60)], 20)
        desk.find(*paths, size=random_.randint(1, 3), priority=random_.choice([0, 10]))
        desk.vanish(*random_.sample(paths, 3))
        desk.do(mend.mend_far_future)


def _janitor(desk: Any, seed: int, until: float) -> None:
    random_ = random.Random(seed)
    while time.monotonic() < until:
        for found in desk.do(leases.open_leases, "h"):
            if random_.random() < 0.2:
                ids = tuple(random_.sample(range(1, 61), random_.choice([1, 3])))
                in_hand = InHand(ids, random_.choice([Kind.CRASH, Kind.KILLED]), "")
                desk.end(found.lease, in_hand)
        failed = desk.do(retry.failed_after, 0, 50)
        desk.do(retry.retry, [image.id for image in failed][::-1])


def test_workers_ingest_and_janitor_at_once(desk: Any) -> None:
    desk.find(*(f"{n}.jpg" for n in range(60)))
    until = time.monotonic() + SECONDS
    failures: list[BaseException] = []

    def run(part: Any, seed: int) -> None:
        try:
            part(desk, seed, until)
        except BaseException as error:
            failures.append(error)

    parts = [_worker, _worker, _worker, _worker, _worker, _ingest, _ingest, _janitor]
    threads = [threading.Thread(target=run, args=(part, SEED + at)) for at, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, f"seed {SEED}"
    assert not [thread for thread in threads if thread.is_alive()]
