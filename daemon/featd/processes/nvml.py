"""What NVIDIA's driver says of the GPUs through NVML, which takes no memory of a GPU. Untested on hardware.

A driver may hang: ask it only where somebody notices that, such as in a worker, whose heartbeat is watched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `mig`: the UUIDs of the MIG devices into which it is divided; empty where it is not, or into none.
    `lost`: what NVML says where it does not answer for this GPU; then the rest is empty."""

    uuid: str = ""
    name: str = ""
    divided: bool = False
    mig: tuple[str, ...] = ()
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Driver:
    """`gpus`: in PCI order, as `cuda:N` counts them. `cuda`: the newest CUDA that the driver supports, (major,
    minor). `problem`: why the driver could not be asked, with its `way_out`; then the rest is empty."""

    gpus: tuple[Gpu, ...] = ()
    version: str = ""
    cuda: tuple[int, int] | None = None
    problem: str = ""
    way_out: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with memory of a GPU. `size`: bytes; None where the driver does not tell."""

    pid: int
    name: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a GPU, in bytes. `others`: the processes that are neither this one nor other workers of its featd. In a
    container the driver may list none."""

    total: int
    used: int
    others: tuple[Holder, ...]

    @property
    def of_others(self) -> int:
        return sum(holder.size or 0 for holder in self.others)

    def told(self) -> str:
        """Who else has how much of it, for people."""
        held = (
            f"{one.name} (pid {one.pid})" + ("" if one.size is None else f" {_gigabytes(one.size)}")
            for one in self.others
        )
        return f"{', '.join(held)} of {_gigabytes(self.total)}"


def installed() -> Driver:
    """The GPUs of this machine and their driver."""
    try:
        import pynvml
    except ImportError:
        return Driver(problem="nvidia-ml-py is not installed", way_out="`pip install nvidia-ml-py`")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        return Driver(
            problem=f"NVML says: {problem}", way_out="install the NVIDIA driver; `nvidia-smi` must work"
        )
    try:
        gpus = tuple(_gpus(pynvml))
        number = pynvml.nvmlSystemGetCudaDriverVersion()  # 12040 for CUDA 12.4
        cuda = (number // 1000, number % 1000 // 10)
        return Driver(gpus, str(pynvml.nvmlSystemGetDriverVersion()), cuda)
    except pynvml.NVMLError as problem:
        return Driver(problem=f"NVML says: {problem}", way_out="look at `nvidia-smi` and `dmesg`")
    finally:
        pynvml.nvmlShutdown()


def memory(visible: str) -> Memory | None:
    """Of the GPU that CUDA_VISIBLE_DEVICES names so: by its number in PCI order, its UUID or the beginning of that, or
    the UUID of a MIG device. None where the driver cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    try:
        device = _handle(pynvml, visible)
        try:
            told = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError:  # a driver before 510, which counts its own reserve as used
            told = pynvml.nvmlDeviceGetMemoryInfo(device)
        processes = []
        with contextlib.suppress(pynvml.NVMLError):
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        return Memory(int(told.total), int(told.used), tuple(_others(processes)))
    except (pynvml.NVMLError, ValueError):
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpus(pynvml: Any) -> Iterator[Gpu]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            yield _gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError_NoPermission:  # kept from this process: CUDA does not count it either
            continue
        except pynvml.NVMLError as problem:
            yield Gpu(lost=str(problem))


def _gpu(pynvml: Any, device: Any) -> Gpu:
    uuid, name = str(pynvml.nvmlDeviceGetUUID(device)), str(pynvml.nvmlDeviceGetName(device))
    divided, mig = False, []
    with contextlib.suppress(pynvml.NVMLError):  # not every GPU can be divided
        divided = pynvml.nvmlDeviceGetMigMode(device)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        for at in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device) if divided else 0):
            with contextlib.suppress(pynvml.NVMLError):  # a place that is not taken
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, at)
                mig.append(str(pynvml.nvmlDeviceGetUUID(part)))
    return Gpu(uuid, name, divided, tuple(mig))


def _handle(pynvml: Any, visible: str) -> Any:
    """NVMLError or ValueError where there is no such device."""
    if visible.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))
    if visible.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(visible)
    for index in range(pynvml.nvmlDeviceGetCount()):
        with contextlib.suppress(pynvml.NVMLError):  # a lost one, which may be another
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            if str(pynvml.nvmlDeviceGetUUID(device)).startswith(visible):
                return device
    raise ValueError(visible)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _others(processes: list[Any]) -> Iterator[Holder]:
    mine = os.getppid()
    for process in processes:
        pid = int(process.pid)
        if pid != os.getpid() and _parent(pid) != mine:
            size = process.usedGpuMemory
            yield Holder(pid, _name(pid), None if size is None else int(size))


def _parent(pid: int) -> int:
    """The pid of its parent; 0 where it is not visible here."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a process of another container"
