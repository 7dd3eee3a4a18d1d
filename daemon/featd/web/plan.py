"""What the page is told, decided before it is forked."""

from __future__ import annotations

from dataclasses import dataclass, field

from featd.report.watched import Watched


@dataclass(frozen=True, slots=True)
class WebPlan:
    """Which instance it shows, and where. `token`: what a client must show; empty: nothing."""

    catalog_url: str
    watched: Watched
    address: str
    port: int
    token: str = field(repr=False)
