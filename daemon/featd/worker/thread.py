"""What the threads of a worker have in common."""

from __future__ import annotations

import threading

from featd import clock


class WorkerThread(threading.Thread):
    """`failure`: the error that ended the thread. `turned_at`: when it last made progress, for the worker's heartbeat
    promises that all of its threads go on."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.failure: Exception | None = None
        self.turned_at = clock.monotonic()

    def turn(self) -> None:
        """Note progress. To be called in each turn of the thread's loop."""
        self.turned_at = clock.monotonic()
