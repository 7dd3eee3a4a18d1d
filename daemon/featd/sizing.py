"""How many workers, threads, decoders and images at once: what the configuration says; where that is "auto", what
`featd bench` has measured on this host with this model; else a rule that costs nothing.

The supervisor's process uses this, so it imports no engine. What is read here may be anything and is no error.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featd.config import Settings
from featd.paths import read_regular
from featd.processes import devices
from featd.shards.atomic import make_folder, write_atomically

MOST_BYTES = 1024 * 1024
BATCH = 32
DECODERS = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one host. `devices` has one entry for each worker; `threads`, `batch` and `decoders` are each worker's."""

    devices: tuple[str, ...]
    threads: int
    batch: int
    decoders: int


def sizes(settings: Settings) -> Sizes:
    """The sizes of this host's workers."""
    workers = settings.workers
    chosen = tuple(devices.resolve(workers.devices, workers.per_device))
    measured = kept(settings)
    free = workers.devices == "auto" and workers.per_device == 1
    if measured is not None and free and set(chosen) == set(measured.devices):
        chosen = measured.devices
    if measured is None or measured.devices != chosen:
        measured = Sizes(chosen, devices.cpu_threads(list(chosen)), BATCH, DECODERS)
    return Sizes(
        devices=chosen,
        threads=measured.threads if workers.threads == "auto" else workers.threads,
        batch=measured.batch if workers.batch == "auto" else workers.batch,
        decoders=measured.decoders if workers.decoders == "auto" else workers.decoders,
    )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def subject(settings: Settings) -> dict[str, Any]:
    """What a measurement is of: the net with the sizes of its files, its preprocessing, and the cores."""
    files = [one for one in (settings.model.net, settings.model.weights) if one is not None]
    return {
        "model": settings.model.model_dump(mode="json"),
        "preprocess": settings.preprocess.model_dump(mode="json"),
        "bytes": [Path(one).stat().st_size if Path(one).is_file() else 0 for one in files],
        "cores": cores(),
    }


def keep(settings: Settings, document: dict[str, Any], chosen: Sizes) -> Path:
    """Keep a measurement for the next start; returns its file. OSError."""
    file = _file(settings)
    make_folder(file.parent)
    kept = {**document, "subject": subject(settings), "settings": asdict(chosen)}
    write_atomically(file, json.dumps(kept, indent=2).encode())
    return file


def kept(settings: Settings) -> Sizes | None:
    """What `keep` kept, if it is of this host with this model; None otherwise."""
    try:
        document = json.loads(read_regular(_file(settings), MOST_BYTES))
        if document["subject"] != subject(settings):
            return None
        found = Sizes(**document["settings"])
        return _usable(found.devices, (found.threads, found.batch, found.decoders))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _file(settings: Settings) -> Path:
    """All seats of a host have one measurement."""
    return settings.state_folder / f"{socket.gethostname()}.bench.json"


def _usable(named: Sequence[object], numbers: tuple[int, int, int]) -> Sizes:
    """ValueError where they are not such as `featd bench` chooses."""
    if not named or not all(isinstance(one, str) for one in named):
        raise ValueError(named)
    if not all(type(one) is int and 1 <= one <= 4096 for one in numbers):
        raise ValueError(numbers)
    return Sizes(tuple(map(str, named)), *numbers)
