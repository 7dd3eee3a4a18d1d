"""Checks of the devices of workers: what NVIDIA's driver says of the GPUs, and whether the driver, its libraries and
the engine fit together. Untested on hardware.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from featd.config import Settings
from featd.doctor.finding import About, Finding, error, ok, warning
from featd.errors import ModelError, first_line
from featd.processes import devices, nvml
from featd.processes.nvml import Driver, installed


def look_at_devices(settings: Settings | None) -> Iterator[Finding]:
    """The devices that workers are to use, and whether a GPU's driver and libraries fit."""
    driver = installed()
    configured = "auto" if settings is None else settings.workers.devices
    wanted = devices.resolve(configured, 1 if settings is None else settings.workers.per_device)
    missing = [why for name in dict.fromkeys(wanted) if (why := devices.why_missing(name, driver))]
    for why in missing:
        yield error(
            About.DEVICES,
            why,
            'correct workers.devices (`nvidia-smi` lists the GPUs), or write devices = "auto"',
        )
    if not missing:
        names = Counter(gpu.name for gpu in driver.gpus if not gpu.lost)
        gpus = ", ".join(f"{count} x {name}" for name, count in names.items())
        yield ok(
            About.DEVICES, ", ".join(devices.labels(wanted)) + (f"; this machine has {gpus}" if gpus else "")
        )
    on_gpus = [name for name in dict.fromkeys(wanted) if name != "cpu"]
    if on_gpus and not missing:
        yield from _look_at_memory(on_gpus)
        yield from _look_at_parts(driver, on_gpus)
        yield from _look_at_driver(driver, on_gpus[0], "auto" if settings is None else settings.model.engine)
    elif driver.gpus and not on_gpus and configured == "auto":
        yield warning(
            About.DRIVER,
            f"this machine has {len(driver.gpus)} GPUs, and workers use the CPU: this process does not see the GPUs",
            'look at CUDA_VISIBLE_DEVICES; or name them: devices = ["cuda:0"]',
        )


def _look_at_memory(on_gpus: list[str]) -> Iterator[Finding]:
    """Whether other programs have memory of the GPUs that workers use."""
    for device in on_gpus:
        seen = nvml.memory(devices.visible_as(device))
        if seen is None:
            continue
        # Workers of a featd that is running now are no others.
        others = tuple(one for one in seen.others if not one.name.startswith("featd: "))
        if others:
            yield warning(
                About.DEVICES,
                f"other programs have memory of {device}: {replace(seen, others=others).told()}",
                "end them if they are not wanted; or name other GPUs in workers.devices",
            )


def _look_at_parts(driver: Driver, on_gpus: list[str]) -> Iterator[Finding]:
    """Whether a GPU that is divided by MIG is named as a whole: CUDA then uses its first part alone."""
    for index, gpu in enumerate(driver.gpus):
        if gpu.divided and (f"cuda:{index}" in on_gpus or gpu.uuid in on_gpus) and not devices.are_given():
            names = ", ".join(f'"{uuid}"' for uuid in gpu.mig)
            yield warning(
                About.DEVICES,
                f"cuda:{index} is divided by MIG into {len(gpu.mig)} devices, and a worker on the whole uses one",
                f"name them: devices = [{names}]" if names else "make MIG devices with `nvidia-smi mig`",
            )


def _look_at_driver(driver: Driver, device: str, engine: str) -> Iterator[Finding]:
    """Whether an engine can use the GPUs of workers."""
    from featd.doctor.engines import (  # here: where only the CPU is used, no engine is loaded
        ONE_RUNTIME,
        find_caffe,
    )
    from featd.engines import caffe, onnxruntime, session

    if driver.problem:
        yield warning(About.DRIVER, f"the driver cannot be asked: {driver.problem}", driver.way_out)
    try:
        module: Any = session.import_onnxruntime()
        has_cuda = "CUDAExecutionProvider" in module.get_available_providers()
    except ModelError:
        module, has_cuda = None, False
    if not has_cuda or engine == caffe.NAME:
        if (
            engine != onnxruntime.NAME
            and find_caffe()[0]
            and caffe.can_use(device if device.startswith("cuda:") else "cuda:0")
        ):
            yield ok(About.DRIVER, f"real Caffe can use {device}")
        else:
            yield error(
                About.DRIVER,
                f"no installed engine can use {device}: this ONNX Runtime has no CUDA",
                f'{ONE_RUNTIME}; or set devices = ["cpu"]',
            )
        return
    built_for = str(getattr(module, "cuda_version", "") or "")
    if driver.cuda and built_for and int(built_for.split(".")[0]) > driver.cuda[0]:
        yield error(
            About.DRIVER,
            f"driver {driver.version} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}, and this ONNX Runtime needs CUDA"
            f" {built_for}",
            f"install a newer NVIDIA driver, or an onnxruntime-gpu that is built for CUDA {driver.cuda[0]}",
        )
    elif why := _lacks_libraries(module):
        yield error(
            About.DRIVER,
            f"ONNX Runtime {module.__version__} cannot load its CUDA libraries: {why}",
            f"`pip install 'onnxruntime-gpu[cuda,cudnn]'`, or install CUDA {built_for} and cuDNN for it, and put their"
            " libraries on LD_LIBRARY_PATH",
        )
    else:
        driver_told = f"driver {driver.version}, " if driver.version else ""
        yield ok(About.DRIVER, f"{driver_told}ONNX Runtime {module.__version__} for CUDA {built_for or '?'}")


def _lacks_libraries(onnxruntime: Any) -> str:
    """Why ONNX Runtime's part for CUDA cannot be loaded; empty where it can. ONNX Runtime itself would only warn, and
    run on the CPU."""
    from featd.engines import session  # here: where only the CPU is used, no engine is loaded

    session.preload_cuda(onnxruntime)
    capi = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(capi / "libonnxruntime_providers_shared.so"), os.RTLD_GLOBAL)
        ctypes.CDLL(str(capi / "libonnxruntime_providers_cuda.so"))
    except OSError as problem:
        return first_line(problem)
    return ""
