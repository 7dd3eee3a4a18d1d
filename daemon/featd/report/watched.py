"""What a report is about: the part of the settings that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featd.config import RootConfig, Settings, StoreConfig
from featd.sizing import sizes
from featd.states import RetryPolicy


@dataclass(frozen=True, slots=True)
class Watched:
    """An instance, as this host's configuration describes it."""

    store: StoreConfig
    roots: tuple[RootConfig, ...]
    decoders: int
    lease_seconds: float
    retry: RetryPolicy
    state: Path
    """The folder of the seats' folders."""
    seat: str | None
    """The one seat of this host that is looked at; None for all of them."""

    @classmethod
    def of(cls, settings: Settings, seat: str | None = None) -> Watched:
        return cls(
            settings.store,
            settings.roots,
            sizes(settings).decoders,
            settings.workers.lease_seconds,
            settings.retry.policy,
            settings.state_folder,
            seat,
        )
