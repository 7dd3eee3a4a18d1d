"""When a file that the watch reported is complete. Uses no disk, no catalog and no clock."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from featd.ingest.hints import Hint

CLOSED_SECONDS = 0.02
"""The kernel's clock for file times moves in ticks: a write within the same tick does not change the time."""


@dataclass(slots=True)
class Waiting:
    """A file that is checked again when it is due. `since`: its size and time have not changed since then."""

    hint: Hint
    due: float
    size: int = -1
    mtime_ns: int = -1
    since: float = 0.0


class Settling:
    """The files of one root that may not be complete yet, soonest due first.

    A file that was closed or moved here is complete when its mtime is 20 ms old. Any other file is complete when its
    size and mtime have not changed for settle_seconds on the monotonic clock, or its mtime is older than that.
    """

    def __init__(self, settle_seconds: float, *, max_files: int) -> None:
        self._settle_seconds = settle_seconds
        self._max_files = max_files
        self._waiting: dict[bytes, Waiting] = {}
        self._queue: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, path: bytes) -> bool:
        return path in self._waiting

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._max_files

    def hear(self, path: bytes, hint: Hint, now: float) -> None:
        """Something happened to `path`: check it now."""
        known = self._waiting.get(path)
        if known is None:
            self._waiting[path] = known = Waiting(hint, now)
        elif hint is Hint.ATTRIB:
            return  # it is checked anyway
        known.hint = hint
        # What went is checked before what came: a file may have moved.
        self._put_off(path, known, 0.0 if hint is Hint.GONE else now)

    def take_young(self, path: bytes, size: int, mtime_ns: int, now: float) -> bool:
        """Take over a file that a scan found and that changed a moment ago. False where too many are waiting."""
        if path in self._waiting:
            return True
        if self.full:
            return False
        waiting = Waiting(Hint.CREATED, now, size, mtime_ns, now)
        self._waiting[path] = waiting
        self._put_off(path, waiting, now + self._settle_seconds)
        return True

    def due(self, now: float, limit: int) -> list[bytes]:
        """Up to `limit` paths to check now. Each must be answered with `looked_at` or `drop`."""
        paths: dict[bytes, None] = {}
        while self._queue and self._queue[0][0] <= now and len(paths) < limit:
            due, path = heapq.heappop(self._queue)
            waiting = self._waiting.get(path)
            if waiting is not None and waiting.due == due:
                paths[path] = None
        return list(paths)

    def looked_at(self, path: bytes, size: int, mtime_ns: int, now: float, now_ns: int) -> bool:
        """Whether the file is complete; otherwise it is due again later. `now_ns`: the wall clock."""
        waiting = self._waiting[path]
        age = (now_ns - mtime_ns) / 1e9
        if waiting.hint is Hint.CLOSED:
            if not 0 <= age < CLOSED_SECONDS:
                return True
            self._put_off(path, waiting, now + CLOSED_SECONDS - age)
            return False
        if age >= self._settle_seconds:
            return True
        if (size, mtime_ns) != (waiting.size, waiting.mtime_ns):
            waiting.size, waiting.mtime_ns, waiting.since = size, mtime_ns, now
        still = now - waiting.since
        if still >= self._settle_seconds:
            return True
        left = self._settle_seconds - still
        if age >= 0:
            left = min(left, self._settle_seconds - age)
        self._put_off(path, waiting, now + left)
        return False

    def drop(self, path: bytes) -> None:
        self._waiting.pop(path, None)

    def again(self, paths: list[bytes], now: float) -> None:
        """Handling these has failed: they are due again."""
        for path in paths:
            if (waiting := self._waiting.get(path)) is not None:
                self._put_off(path, waiting, now)

    def clear(self) -> None:
        self._waiting.clear()
        self._queue.clear()

    def next_due(self) -> float | None:
        while self._queue:
            due, path = self._queue[0]
            waiting = self._waiting.get(path)
            if waiting is not None and waiting.due == due:
                return due
            heapq.heappop(self._queue)
        return None

    def _put_off(self, path: bytes, waiting: Waiting, due: float) -> None:
        waiting.due = due
        heapq.heappush(self._queue, (due, path))
