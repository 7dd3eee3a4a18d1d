"""What the janitor is told, decided before it is forked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featd.states import RetryPolicy


@dataclass(frozen=True, slots=True)
class JanitorPlan:
    """Whose leases it ends and which store it tidies. `draining`: it also says when nothing is left to do."""

    catalog_url: str
    lease_seconds: float
    retry: RetryPolicy
    host: str
    run_folder: Path
    store: Path
    keep_unknown_days: float
    min_free: int
    """Bytes of the store's disk that unknown shards leave free."""
    verify_days: float
    """Days in which every shard is compared with its checksum once; 0: never."""
    roots: tuple[Path, ...]
    draining: bool
