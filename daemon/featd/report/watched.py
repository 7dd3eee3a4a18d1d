"""What a report is about: the part of the settings that it needs."""

from __future__ import annotations

from dataclasses import dataclass

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

    @classmethod
    def of(cls, settings: Settings) -> Watched:
        return cls(
            settings.store,
            settings.roots,
            sizes(settings).decoders,
            settings.workers.lease_seconds,
            settings.retry.policy,
        )
