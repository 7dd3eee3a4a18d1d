"""The devices of this machine, and hiding all but one of them from a worker's engine."""

from __future__ import annotations

import os
from pathlib import Path

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def resolve(configured: str | tuple[str, ...]) -> list[str]:
    """The devices to run a worker on; "auto" is every GPU, or one `cpu` without any."""
    if not isinstance(configured, str):
        return list(configured)
    return [f"cuda:{index}" for index in range(_gpu_count())] or ["cpu"]


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
    inherited list, in PCI order.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    inherited = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    at = int(index)
    os.environ["CUDA_VISIBLE_DEVICES"] = inherited[at] if at < len(inherited) else index
    return "cuda:0"


def cpu_threads(devices: list[str]) -> int:
    """Threads for the engine of each worker on the CPU, so that together they do not outnumber the cores."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, devices.count("cpu")))


def _gpu_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # As in CUDA, the list ends at the first entry that names no device ("-1" hides all).
        return next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))
    try:
        return len(list(_NVIDIA.iterdir()))
    except OSError:
        return 0
