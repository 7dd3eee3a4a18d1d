"""The devices of this machine, and hiding all but one of them from a worker's engine."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from featd.errors import ConfigError

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def resolve(configured: str | tuple[str, ...]) -> list[str]:
    """The devices to run a worker on; "auto" is every GPU, or one `cpu` without any."""
    if not isinstance(configured, str):
        return list(configured)
    return [f"cuda:{index}" for index in range(gpu_count())] or ["cpu"]


def labels(devices: list[str]) -> list[str]:
    """Names for people: `cpu:0`, `cpu:1` for workers on the CPU, `cuda:N` as they are."""
    seen = 0
    named = []
    for device in devices:
        if device == "cpu":
            named.append(f"cpu:{seen}")
            seen += 1
        else:
            named.append(device)
    return named


def isolate(device: str) -> str:
    """Hide all GPUs but `device` from this process; returns the name under which the engine knows it now.

    Call it before the engine loads, since CUDA reads CUDA_VISIBLE_DEVICES once. `cuda:N` is the Nth entry of the
    inherited list (a number, a UUID or a MIG name), else the Nth GPU in PCI order. ConfigError where there is none.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    # Another GPU than the one that was meant may be another job's.
    if why := why_missing(device):
        raise ConfigError(f"workers.devices: {why}")
    inherited = _visible()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = index if inherited is None else inherited[int(index)]
    return "cuda:0"


def why_missing(device: str, installed: int | None = None) -> str:
    """Why there is no such device; empty where there is one, or where that cannot be told. `installed`: how many GPUs
    this machine has, where that is known better than from /proc."""
    kind, _, index = device.partition(":")
    inherited = _visible()
    count = gpu_count() if installed is None or inherited is not None else installed
    if kind != "cuda" or int(index) < count or (not count and inherited is None and installed is None):
        return ""
    where = "this machine has" if inherited is None else "CUDA_VISIBLE_DEVICES has"
    return f"there is no {device}: {where} {count} GPUs, counted from cuda:0"


def cpu_threads(devices: list[str]) -> int:
    """Threads for the engine of each worker on the CPU, so that together they do not outnumber the cores."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, devices.count("cpu")))


def _visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",")]
    # As in CUDA, the list ends at the first entry that names no device ("-1" hides all).
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


def gpu_count() -> int:
    """How many GPUs this process may see, as far as the kernel shows them."""
    if (visible := _visible()) is not None:
        return len(visible)
    try:
        return len(list(_NVIDIA.iterdir()))
    except OSError:
        return 0
