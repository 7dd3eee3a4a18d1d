"""How a worker spent the last seconds: the shares and the rate that `featd status` shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featd import clock

KINDS = ("wait", "decode", "forward", "write")
"""wait: nothing to claim; decode: waiting for decoders; forward: in the net; write: waiting for the writer."""

WINDOW_SECONDS = 30.0
IDLE_SECONDS = 5.0
"""A worker that has been idle for so long reports a rate of 0."""


class Shares:
    """Written by the main loop only; read by the renewal thread."""

    def __init__(self) -> None:
        self._spent: deque[tuple[float, str, float]] = deque()
        self._done: deque[tuple[float, int]] = deque()
        self._began = clock.monotonic()
        self._under_way: tuple[float, str] | None = None
        """Since when the main loop spends its time on what."""
        self.doubted: dict[str, int] = {}
        """Roots of which no file can be read -> for how many rounds."""

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """The time inside counts as `kind`."""
        began = clock.monotonic()
        self._under_way = (began, kind)
        try:
            yield
        finally:
            self._under_way = None
        self.add(kind, clock.monotonic() - began)

    def add(self, kind: str, seconds: float) -> None:
        self._spent.append((clock.monotonic(), kind, seconds))
        self._forget()

    def count(self, images: int) -> None:
        """Count images that went through the net, or whose vectors were copied."""
        self._done.append((clock.monotonic(), images))

    def report(self, state: str) -> dict[str, Any]:
        """For the lease row: state, images per second, and the shares (which add up to 1 or are all 0)."""
        now = clock.monotonic()
        window = max(min(now - self._began, WINDOW_SECONDS), 1e-3)
        spent = dict.fromkeys(KINDS, 0.0)
        for at, kind, seconds in tuple(self._spent):
            if now - at <= WINDOW_SECONDS:
                spent[kind] += seconds
        if (under_way := self._under_way) is not None:  # a long step counts before it ends
            spent[under_way[1]] += min(now - under_way[0], WINDOW_SECONDS)
        total = sum(spent.values())
        done = tuple(self._done)
        images = sum(count for at, count in done if now - at <= WINDOW_SECONDS)
        if state == "idle" and done and now - done[-1][0] > IDLE_SECONDS:
            images = 0
        return {
            "state": state,
            "images_per_second": round(images / window, 2),
            "doubted": dict(self.doubted),
            "share": {kind: round(seconds / total, 3) if total else 0.0 for kind, seconds in spent.items()},
        }

    def _forget(self) -> None:
        limit = clock.monotonic() - WINDOW_SECONDS
        while self._spent and self._spent[0][0] < limit:
            self._spent.popleft()
        while self._done and self._done[0][0] < limit:
            self._done.popleft()
