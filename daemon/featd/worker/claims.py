"""Claiming ahead: the thread of a worker that claims rows and releases them."""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import claim, connect
from featd.crash_points import CrashPoint, crash_point
from featd.errors import CatalogUnavailableError
from featd.processes.link import ChildLink
from featd.roots import RootState, root_state
from featd.states import PRIORITIES, PRIORITY_ARRIVAL, PRIORITY_ASKED, PRIORITY_BACKLOG, ClaimedImage, Lease
from featd.worker.thread import WorkerThread

log = logs.get("worker")

POLL_SECONDS = 0.5
"""Between two claims while nothing can be claimed; ingest wakes the worker earlier."""
PLACES_SECONDS = 2.0
"""Between two checks of which roots are online, and of whether the store's disk has room."""

CLAIM_SECONDS = 1.0
"""About as long lasts what one claim takes: a claim costs the catalog as much for few rows as for many. More would keep
it from workers that have nothing left to do."""
MOST_AHEAD = 4096


class Held:
    """The ids that a worker has claimed and neither settled nor released, and since when. Shared by its threads."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()

    def add(self, ids: Iterable[int]) -> None:
        now = clock.monotonic()
        with self._lock:
            self._since.update(dict.fromkeys(ids, now))

    def drop(self, ids: Iterable[int]) -> None:
        with self._lock:
            for image_id in ids:
                self._since.pop(image_id, None)

    def snapshot(self) -> list[int]:
        with self._lock:
            return sorted(self._since)

    def oldest(self, ids: Iterable[int]) -> float:
        """When the first of them was claimed (monotonic); now where none is held."""
        now = clock.monotonic()
        with self._lock:
            return min((self._since.get(image_id, now) for image_id in ids), default=now)


class Claims(WorkerThread):
    """Keeps at least `ahead` claimed images ready for the pipeline, arrivals first; more where they last for less than
    CLAIM_SECONDS.

    `exhausted`: the last claim got fewer rows than it asked for, so nothing more can be claimed now. Nothing is claimed
    while `lacks_room` says that the store has no room for more vectors.
    """

    def __init__(
        self,
        catalog: sa.Engine,
        lease: Lease,
        link: ChildLink,
        roots: Mapping[str, str],
        held: Held,
        *,
        ahead: int,
        lease_seconds: float,
        lacks_room: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__("claims")
        self.exhausted = False
        self._catalog = catalog
        self._lease = lease
        self._link = link
        self._roots = roots
        self._online: list[str] = []
        self._places_due = 0.0
        self._lacks_room = lacks_room
        self._held = held
        self._ahead = self._least_ahead = ahead
        self._refilled_at = float("-inf")
        self._arrived: deque[ClaimedImage] = deque()
        self._ready: deque[ClaimedImage] = deque()
        self._returned: deque[int] = deque()
        self._unheld_every = lease_seconds / 3
        self._unheld_due = clock.monotonic() + self._unheld_every
        self._told_to_stop = threading.Event()
        self._woken = False

    # The pipeline's side

    def take(self) -> ClaimedImage | None:
        """The next claimed image, or None where none is ready."""
        queue = self._arrived or self._ready
        if not queue:
            return None
        image = queue.popleft()
        if self._kept() == self._ahead // 2:
            self._link.wake_self()
        return image

    def _kept(self) -> int:
        return len(self._arrived) + len(self._ready)

    def give_back(self, image: ClaimedImage) -> None:
        """Release an image whose root went offline; no attempt is counted."""
        self._returned.append(image.id)

    def stop(self) -> None:
        """Stop claiming. What is held is released when the worker ends its lease."""
        self._told_to_stop.set()
        self._link.wake_self()
        self.join()

    # The thread's side

    def run(self) -> None:
        while not self._told_to_stop.is_set():
            self.turn()
            try:
                claimed = self.step(clock.monotonic())
            except CatalogUnavailableError as error:
                # The claim may have succeeded although its reply was lost: such rows are released soon.
                self._unheld_due = clock.monotonic()
                log.warning("claim_failed", "cannot claim images; trying again in 1 s", error=str(error))
                self._told_to_stop.wait(1.0)
                continue
            except Exception as error:
                self.failure = error
                return
            if not claimed:
                self._wait()

    def step(self, now: float) -> int:
        """Claim what is missing; returns how many rows were claimed."""
        if now >= self._unheld_due:
            held = self._held.snapshot()
            freed = connect.transact(self._catalog, claim.release_unheld, self._lease, held)
            if freed:
                log.warning(
                    "rows_released", "released rows of a claim whose COMMIT reply was lost", rows=freed
                )
            self._unheld_due = now + self._unheld_every
        if self._returned:
            self._release_returned()
        want = self._ahead - self._kept()
        priorities: Sequence[int] = PRIORITIES
        if want < self._ahead // 2:
            # Ingest reports an arrival, which must not wait behind the backlog that is claimed already. Many arrivals
            # are a backlog themselves, so they get at most half of what is kept ready.
            want, priorities = want + self._ahead // 2, (PRIORITY_ASKED, PRIORITY_ARRIVAL)
            if not self._woken or want <= 0:
                return 0
        else:
            self._fit(now)
            want = self._ahead - self._kept()
        if now >= self._places_due:
            roots = {} if self._lacks_room() else self._roots
            self._online = [
                root for root, place in roots.items() if root_state(Path(place)) is RootState.ONLINE
            ]
            self._places_due = now + PLACES_SECONDS
        claimed: list[ClaimedImage] = []
        if self._online:
            claimed = connect.transact(
                self._catalog, claim.claim, self._lease, want, self._online, priorities
            )
        if claimed:
            crash_point(CrashPoint.CLAIMED)
        self._woken = False
        self._held.add(image.id for image in claimed)
        for image in claimed:
            (self._ready if image.priority == PRIORITY_BACKLOG else self._arrived).append(image)
        if priorities is PRIORITIES:
            self.exhausted = len(claimed) < want
        return len(claimed)

    def _fit(self, now: float) -> None:
        """Keep so much ready that the half, after which more is claimed, lasts for about CLAIM_SECONDS."""
        lasted, self._refilled_at = now - self._refilled_at, now
        if lasted < CLAIM_SECONDS / 2 and not self.exhausted:
            self._ahead = max(self._least_ahead, min(2 * self._ahead, MOST_AHEAD))
        elif lasted > 2 * CLAIM_SECONDS:
            self._ahead = max(self._least_ahead, self._ahead // 2)

    def _release_returned(self) -> None:
        ids = list(self._returned)
        connect.transact(self._catalog, claim.release, self._lease, ids)
        for _ in ids:
            self._returned.popleft()
        self._held.drop(ids)
        self._places_due = 0.0  # a root was found missing: check all again

    def _wait(self) -> None:
        """Wait until the pipeline has taken half, ingest has something new, or POLL_SECONDS have passed."""
        select.select([self._link.wake_fd], [], [], POLL_SECONDS)
        self._woken = self._link.take_wake()
