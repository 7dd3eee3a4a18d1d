"""Report after report of one catalog, which may be away for a while, be replaced or be upgraded meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

import sqlalchemy as sa

from featd import clock
from featd.catalog import dialects, migrate
from featd.errors import CatalogUnavailableError

T = TypeVar("T")

EVERY_SECONDS = 1.0
REST = 4.0
"""The pause after a report, as a multiple of the time it took, so that looking is never a heavy load."""
SILENT_SECONDS = 3.0
"""After so long without an answer people are told."""


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """The last report. `trouble`: why it is outdated."""

    report: T | None = None
    at: datetime | None = None
    trouble: str | None = None


class Looking(Generic[T]):
    """Calls `make`, which reads the catalog. Use in one thread."""

    def __init__(self, catalog: sa.Engine, make: Callable[[], T]) -> None:
        self._catalog = catalog
        self.make = make
        self._latest: Look[T] = Look()
        self._checked = False
        self._identity: tuple[int, int] | None = None

    def step(self) -> Look[T]:
        """Make one report. Errors that do not pass by themselves are raised."""
        try:
            self._reopen_if_moved()
            if not self._checked:
                migrate.check_schema(self._catalog)
                self._checked = True
            self._latest = Look(self.make(), clock.utcnow())
        except CatalogUnavailableError as error:
            self._checked = False  # the catalog may have been restored or migrated meanwhile
            self._latest = Look(self._latest.report, self._latest.at, str(error))
        return self._latest

    def _reopen_if_moved(self) -> None:
        """Close the connections to an SQLite catalog that was moved or replaced: they would still read the old file."""
        if not dialects.is_sqlite(self._catalog):
            return
        try:
            found = Path(str(self._catalog.url.database)).stat()
            identity = (found.st_dev, found.st_ino)
        except OSError:
            identity = None
        if identity != self._identity:
            self._catalog.dispose()
            self._checked = False
        self._identity = identity


def pause_after(seconds: float) -> float:
    """How long to wait after a report that took so many seconds."""
    return max(EVERY_SECONDS, REST * seconds)
