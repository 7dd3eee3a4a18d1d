"""What the ingest process is told, decided before it is forked."""

from __future__ import annotations

from dataclasses import dataclass

from featd.config import RootConfig


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """The roots to watch and scan. `seat`: its name. `once`: scan each root one time, watch nothing, and end."""

    catalog_url: str
    lease_seconds: float
    seat: str
    roots: tuple[RootConfig, ...]
    once: bool
