"""Reports on demand: read in a thread of its own, at most every second, and only while somebody looks."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from featd import clock, logs
from featd.errors import first_line
from featd.report import words
from featd.report.looking import SILENT_SECONDS, Look, pause_after

log = logs.get("web")

T = TypeVar("T")


class Looks(Protocol[T]):
    """What makes the reports: each call of `step` makes one."""

    def step(self) -> Look[T]: ...


class Live(Generic[T]):
    """The latest report, for any number of clients. Use in one event loop."""

    def __init__(self, looking: Looks[T]) -> None:
        self.looking = looking
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._latest: Look[T] = Look()
        self._under_way: asyncio.Future[Look[T]] | None = None
        self._asked_at = 0.0
        self._fresh_until = 0.0

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def look(self) -> Look[T]:
        """A report that is about a second old, or older where reading takes long; with what troubles it where the
        catalog, a root or the store does not answer."""
        if self._under_way is None and clock.monotonic() >= self._fresh_until:
            self._asked_at = clock.monotonic()
            self._under_way = asyncio.get_running_loop().run_in_executor(self._thread, self.looking.step)
            self._under_way.add_done_callback(self._take)
        if self._under_way is not None:
            await asyncio.wait([self._under_way], timeout=SILENT_SECONDS)
        if self._under_way is None:
            return self._latest
        silent = words.duration(clock.monotonic() - self._asked_at)
        told = f"no answer for {silent}: the catalog, a root or the store does not respond"
        return replace(self._latest, trouble=told)

    def _take(self, answer: asyncio.Future[Look[T]]) -> None:
        self._under_way = None
        self._fresh_until = clock.monotonic() + pause_after(clock.monotonic() - self._asked_at)
        try:
            self._latest = answer.result()
        except asyncio.CancelledError:
            return
        except (
            Exception
        ) as error:  # what does not pass by itself ends `featd status`; the page goes on and says so
            log.debug("report_failed", "cannot make a report", error=first_line(error))
            self._latest = replace(self._latest, trouble=first_line(error) or type(error).__name__)
