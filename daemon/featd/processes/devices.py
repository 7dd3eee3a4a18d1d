"""The devices of this machine, and hiding all but one of them from a worker's engine.

A GPU is `cuda:N`, its UUID `GPU-...`, or the UUID `MIG-...` of a part of one.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path

from featd.errors import DeviceError
from featd.processes import nvml

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_SHORT_UUID = len("GPU-12345678")


def resolve(configured: str | tuple[str, ...], per_device: int = 1) -> list[str]:
    """The devices to run a worker on, one for each worker; "auto" is every GPU, or one `cpu` without any."""
    devices = list(configured)
    if isinstance(configured, str):
        devices = [f"cuda:{index}" for index in range(gpu_count())] or ["cpu"]
    return [device for device in devices for _ in range(per_device)]


def labels(devices: list[str]) -> list[str]:
    """A name for people for each worker's device: `cpu:0`, `cpu:1` on the CPU; on a GPU its own, or the beginning of
    its UUID; and for the second worker there `cuda:0#2`."""
    seen: Counter[str] = Counter()
    named = []
    for device in devices:
        if device == "cpu":
            named.append(f"cpu:{seen[device]}")
        else:
            name = device if "/" in device else device[:_SHORT_UUID]
            named.append(f"{name}#{seen[device] + 1}" if seen[device] else name)
        seen[device] += 1
    return named


def of_label(label: str) -> str:
    """The device that a label names: workers of one GPU have it in common."""
    return "cpu" if label.startswith("cpu") else label.partition("#")[0]


def isolate(device: str) -> str:
    """Hide all GPUs but `device` from this process; returns the name under which the engine knows it now.

    Call it before the engine loads, since CUDA reads CUDA_VISIBLE_DEVICES once. `cuda:N` is the Nth entry of the
    inherited list (a number, a UUID or a MIG name), else the Nth GPU in PCI order. DeviceError where there is none.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return device
    driver = nvml.installed()
    nothing_known = driver.problem and not are_given() and not gpu_count()
    # Another GPU than the one that was meant may be another job's.
    if not nothing_known and (why := why_missing(device, driver)):
        raise DeviceError(f"workers.devices: {why}")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_as(device)
    return "cuda:0"


def visible_as(device: str) -> str:
    """The name of a GPU that is there, as CUDA_VISIBLE_DEVICES takes it."""
    index, inherited = _index(device), _visible()
    if index is None:
        return device
    return str(index) if inherited is None else inherited[index]


def are_given() -> bool:
    """Whether this process was given some of the GPUs, by a scheduler or a container."""
    return _visible() is not None


def why_missing(device: str, driver: nvml.Driver) -> str:
    """Why there is no such device; empty where there is one, or where that cannot be told."""
    if device == "cpu":
        return ""
    inherited = _visible()
    index = _index(device)
    if index is None:
        return _why_not_named(device, inherited, driver)
    if inherited is not None:
        where, count = "CUDA_VISIBLE_DEVICES has", len(inherited)
    else:
        where, count = "this machine has", gpu_count() if driver.problem else len(driver.gpus)
    if index >= count:
        return f"there is no {device}: {where} {count} GPUs, counted from cuda:0"
    if inherited is None and not driver.problem and (lost := driver.gpus[index].lost):
        return f"{device} does not answer, NVML says: {lost}: see `dmesg`, reset it or restart the machine"
    return ""


def _why_not_named(device: str, inherited: list[str] | None, driver: nvml.Driver) -> str:
    """The same of a UUID."""
    known = {uuid for gpu in driver.gpus for uuid in (gpu.uuid, *gpu.mig)}
    # MIG devices of old drivers have names of another form than NVML's.
    if not driver.problem and device not in known and "/" not in device:
        lost = sum(bool(gpu.lost) for gpu in driver.gpus)
        return f"there is no {device} (`nvidia-smi -L` lists them)" + (
            f"; {lost} of {len(driver.gpus)} GPUs do not answer: see `dmesg`" if lost else ""
        )
    if inherited is None:
        return ""
    for name in inherited:
        index = int(name) if name.isdecimal() else None
        if index is not None and index < len(driver.gpus):
            name = driver.gpus[index].uuid
        if name and device.startswith(name):  # CUDA takes the beginning of a UUID, too
            return ""
    return f"there is no {device} among CUDA_VISIBLE_DEVICES={','.join(inherited)}, the GPUs that were given to featd"


def cpu_threads(devices: list[str]) -> int:
    """Threads for the engine of each worker on the CPU, so that together they do not outnumber the cores."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, devices.count("cpu")))


def _index(device: str) -> int | None:
    """N of `cuda:N`; None for a UUID."""
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" else None


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
