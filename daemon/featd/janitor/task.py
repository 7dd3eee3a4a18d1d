"""A long work of the janitor, which is begun anew every so often and done in steps between its other duties."""

from __future__ import annotations

from collections.abc import Callable, Generator

from featd import clock, logs
from featd.errors import StoreUnavailableError, first_line
from featd.shards.store import OtherStoreError

log = logs.get("janitor")

STEP_SECONDS = 1.0
"""It pauses after this time, so that other duties go on."""


class Task:
    """`begin` makes the work: a generator of steps of at most about a second."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], Generator[object]],
        every_seconds: float,
        *,
        first_seconds: float = 0.0,
        rests: int = 0,
    ) -> None:
        """rests: after each step it rests for so many times as long as the step took."""
        self.name = name
        self._begin = begin
        self._every_seconds = every_seconds
        self._rests = rests
        self._due = clock.monotonic() + first_seconds
        self._go_on_at = 0.0
        self._steps: Generator[object] | None = None

    def hurry(self) -> None:
        """Begin anew as soon as possible."""
        self._due = 0.0

    def step(self, now: float) -> None:
        """Begin if it is due, and go on for STEP_SECONDS. CatalogUnavailableError."""
        if self._steps is None:
            if now < self._due:
                return
            self._due = now + self._every_seconds
            self._steps = self._begin()
        elif now < self._go_on_at:
            return
        began = clock.monotonic()
        try:
            over = all(clock.monotonic() < began + STEP_SECONDS for _ in self._steps)
        except (OSError, StoreUnavailableError, OtherStoreError) as error:
            log.warning(
                "task_failed",
                f"cannot go on with {self.name}; trying again later",
                task=self.name,
                error=first_line(error),
            )
            over = True
        self._go_on_at = clock.monotonic() + self._rests * (clock.monotonic() - began)
        if over:
            self.stop()

    def stop(self) -> None:
        """Stop it where it is."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
