"""What a worker is told: everything it needs to know, decided before it is forked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featd.config import ModelConfig, PreprocessConfig, RootConfig, StoreConfig
from featd.states import RetryPolicy


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker on one device. `seat`: the name of its seat; `seat_key`: what its lease carries. `label` names the
    device for people; `threads` are the engine's on the CPU."""

    catalog_url: str
    lease_seconds: float
    retry: RetryPolicy
    seat: str
    seat_key: str | None
    run_folder: Path
    roots: tuple[RootConfig, ...]
    store: StoreConfig
    model: ModelConfig
    preprocess: PreprocessConfig
    device: str
    label: str
    threads: int
    batch: int
    decoders: int
