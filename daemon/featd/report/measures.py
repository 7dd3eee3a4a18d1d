"""The numbers that a monitoring system asks for again and again: from the catalog, from the supervisor's file, and from
the disk of the store. Rows of `images` are read by partial indexes only."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, counters, feed, forget, hosts, pause, stats, values, verify
from featd.catalog.hosts import IngestReport
from featd.catalog.pause import Pause
from featd.catalog.stats import DeviceTotals, FailureLine, ShardTotals, WorkerLine
from featd.errors import FeatdError
from featd.report import running
from featd.report.looking import Look, Looking
from featd.report.running import Daemon
from featd.report.watched import Watched
from featd.roots import RootState, root_state
from featd.shards.store import free_bytes
from featd.states import State


@dataclass(frozen=True, slots=True)
class OfCatalog:
    """What the catalog tells, of all hosts."""

    counts: dict[State, int]
    failures: list[FailureLine]
    totals: list[DeviceTotals]
    workers: list[WorkerLine]
    overdue_seconds: dict[str, float]
    """Root -> for how long its pending image that is due longest has been due."""
    shards: ShardTotals
    unknown: dict[str, int]
    faulty: int
    needed_bytes: int | None
    """About what the images to do will take in the store; None before the first shard."""
    reports: dict[str, IngestReport]
    """Host -> the last report of its ingest."""
    last_scan: datetime | None
    round: dict[str, Any] | None
    """Where the slow round is; None before the first."""
    changes: int
    feed_lag_seconds: float
    forgetting: bool
    pauses: list[Pause]


@dataclass(frozen=True, slots=True)
class Measures:
    """One look at everything. `catalog`: None where it does not answer."""

    daemon: Daemon
    min_free: int
    free: int | None
    """Bytes on the disk of the store; None where unknown."""
    roots: dict[str, bool]
    """Root of this host's configuration -> whether it is online here."""
    catalog: OfCatalog | None


class Measuring:
    """Measures an instance. Use in one thread."""

    def __init__(self, catalog: sa.Engine, watched: Watched) -> None:
        self._watched = watched
        self._looking = Looking(catalog, lambda: _of_catalog(catalog))

    def step(self) -> Look[Measures]:
        """Measure once. A catalog that cannot be read is no error."""
        of_catalog = None
        with contextlib.suppress(FeatdError):
            look = self._looking.step()
            of_catalog = look.report if look.trouble is None else None
        store = self._watched.store
        free = None
        with contextlib.suppress(OSError):
            free = free_bytes(store.path)
        return Look(
            Measures(
                daemon=running.look(self._watched),
                min_free=store.min_free,
                free=free,
                roots={root.key: root_state(root.path) is RootState.ONLINE for root in self._watched.roots},
                catalog=of_catalog,
            ),
            clock.utcnow(),
        )


def _of_catalog(catalog: sa.Engine) -> OfCatalog:
    with connect.reading(catalog) as conn:
        scanned = values.get_value(conn, hosts.LAST_SCAN)
        counts = counters.counts(conn)
        return OfCatalog(
            counts=counts,
            failures=stats.failures_by_kind(conn),
            totals=stats.device_totals(conn),
            workers=stats.workers(conn),
            overdue_seconds=stats.overdue_seconds(conn),
            shards=(shards := stats.shard_totals(conn)),
            needed_bytes=stats.bytes_needed(counts[State.PENDING] + counts[State.CLAIMED], shards),
            unknown=values.get_value(conn, stats.UNKNOWN) or stats.NO_UNKNOWN,
            # What the slow round has found, of shards that images still name.
            faulty=len(verify.checksums(conn, list(stats.faulty_shards(conn)))),
            reports=hosts.ingest_reports(conn),
            last_scan=None if scanned is None else datetime.fromisoformat(scanned),
            round=values.get_value(conn, stats.ROUND),
            changes=feed.now(conn).number,
            feed_lag_seconds=feed.lag_seconds(conn),
            forgetting=forget.read(conn) is not None,
            pauses=pause.pauses(conn),
        )
