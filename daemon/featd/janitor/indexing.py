"""Keeps the indexes of `featd search` up to date, in a process of its own: it loads vectors, and may take minutes."""

from __future__ import annotations

import os

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, counters, feed
from featd.catalog.feed import Token
from featd.errors import EXIT_NOTHING_MATCHED, EXIT_OK
from featd.janitor.plan import JanitorPlan
from featd.processes.throwaway import Throwaway
from featd.shards.store import lacks_room
from featd.states import State

log = logs.get("janitor")

EVERY_SECONDS = 30.0
EMPTY_SECONDS = 2.0
"""The same, while no image is done."""
NICE = 10


class Indexing:
    """`step` begins an update when it is due, and hears how it ended."""

    def __init__(self, catalog: sa.Engine, plan: JanitorPlan) -> None:
        self._catalog = catalog
        self._plan = plan
        self._reached: Token | None = None
        self._due = 0.0
        self._process: Throwaway | None = None

    def step(self, now: float) -> None:
        """Never waits long. CatalogUnavailableError."""
        if self._process is None:
            if now >= self._due:
                self._begin(now)
            return
        answer = self._process.poll()
        if answer is None:
            return
        if answer.code == EXIT_OK:
            self._reached = self._begun
        elif answer.code != EXIT_NOTHING_MATCHED:  # that is: nothing is done yet
            log.warning(
                "index_not_updated",
                "an index could not be brought up to date; trying again later",
                error=(answer.text or answer.last_words).strip().partition("\n")[0],
            )
        self.stop()

    def _begin(self, now: float) -> None:
        """Begin an update, if there is something new."""
        with connect.reading(self._catalog) as conn:
            self._begun = feed.now(conn)
            done = counters.counts(conn)[State.DONE]
        self._due = now + (EVERY_SECONDS if done else EMPTY_SECONDS)
        if not done:
            return
        if self._begun != self._reached and not lacks_room(self._plan.store.path, self._plan.store.min_free):
            self._process = Throwaway(self._update)

    def stop(self) -> None:
        """End an update where it is; the index stays as it was."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _update(self) -> str:
        from featd.index.update import update_all

        os.nice(NICE)
        catalog = connect.open_catalog(self._plan.catalog_url, self._plan.lease_seconds)
        update_all(catalog, self._plan.store.path)
        return ""
