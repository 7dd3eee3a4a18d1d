"""Renewing the lease while the worker lives. A worker that cannot renew ends itself before its lease ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, leases
from featd.errors import EXIT_ERROR, CatalogUnavailableError, LeaseLostError
from featd.states import Lease
from featd.worker.thread import WorkerThread

log = logs.get("worker")

EVERY_SECONDS = 5.0
"""Often enough for `featd status`; at most a third of the lease."""
MARGIN = 0.1
"""A worker that could not renew exits when this part of its lease is left."""


class Renewal(WorkerThread):
    """Renews in its own thread and connection. `failure`: the error that ended the thread, a LeaseLostError where the
    lease was ended."""

    def __init__(
        self, catalog: sa.Engine, lease: Lease, lease_seconds: float, shares: Callable[[], dict[str, Any]]
    ) -> None:
        super().__init__("renewal")
        self._catalog = catalog
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._shares = shares
        self._told_to_stop = threading.Event()
        self._renewed_at = clock.boottime()

    def run(self) -> None:
        every = min(EVERY_SECONDS, self._lease_seconds / 3)
        try:
            while not self._told_to_stop.wait(min(every, max(0.0, self._left()))):
                self.turn()
                self.step()
        except LeaseLostError as error:
            log.error(
                "lease_lost",
                "lease was ended; discarding the open shard, whose images other workers will process",
                error=str(error),
            )
            self.failure = error
        except Exception as error:
            self.failure = error

    def _left(self) -> float:
        """Seconds after which a worker that could not renew exits."""
        return self._renewed_at + self._lease_seconds * (1 - MARGIN) - clock.boottime()

    def step(self) -> None:
        """Renew once. Exit the process when the lease is about to end. LeaseLostError."""
        asked_at = clock.boottime()
        try:
            connect.transact(self._catalog, leases.renew, self._lease, self._lease_seconds, self._shares())
            self._renewed_at = asked_at
        except CatalogUnavailableError as error:
            if (left := self._left()) <= 0:
                log.error(
                    "lease_expiring", "cannot renew the lease; exiting before it ends", error=str(error)
                )
                os._exit(EXIT_ERROR)
            log.warning(
                "renewal_failed",
                "cannot renew the lease; trying again",
                seconds_left=round(left, 1),
                error=str(error),
            )

    def stop(self) -> None:
        self._told_to_stop.set()
        self.join()
