"""What the ingest process is told, decided before it is forked."""

from __future__ import annotations

from dataclasses import dataclass

from featd.config import RootConfig


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """The roots to watch and scan. `once`: scan each root one time, watch nothing, and end."""

    catalog_url: str
    lease_seconds: float
    host: str
    roots: tuple[RootConfig, ...]
    once: bool
