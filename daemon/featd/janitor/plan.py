"""What the janitor is told, decided before it is forked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featd.config import StoreConfig
from featd.states import RetryPolicy


@dataclass(frozen=True, slots=True)
class JanitorPlan:
    """Whose leases it ends and which store it tidies. `seat`: its name; `seat_key`: what its leases carry. `draining`:
    it also says when nothing is left to do, in `roots` (what the catalog calls them -> their folders). `scans`: the
    seat has an ingest. `search`: it keeps the indexes up to date."""

    catalog_url: str
    lease_seconds: float
    retry: RetryPolicy
    seat: str
    seat_key: str | None
    run_folder: Path
    store: StoreConfig
    feed_days: float
    purge_gone_days: float | None
    roots: Mapping[str, str]
    draining: bool
    scans: bool = True
    search: bool = False
