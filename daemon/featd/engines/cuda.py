"""What featd asks of CUDA's runtime, which ONNX Runtime has loaded then. Untested on hardware."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from featd import logs

_log = logs.get("engine")

_PORTABLE: Final = 1
_MAJOR, _MINOR = 75, 76
"""cudaHostRegisterPortable, cudaDevAttrComputeCapabilityMajor and ...Minor in CUDA's driver_types.h."""


def pin(array: npt.NDArray[Any]) -> None:
    """Lock the array's memory, so that copies from it to a GPU run beside kernels. Where that is not possible, they are
    only slower, and a warning says so."""
    runtime = _runtime()
    if runtime is None:
        status = "its runtime library is not loaded"
    else:
        address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        if (code := runtime.cudaHostRegister(address, size, _PORTABLE)) == 0:
            return
        status = f"cudaHostRegister: error {code}"
    _log.warning(
        "memory_not_pinned",
        "CUDA cannot lock the memory that pictures wait in; copying them to the GPU will be slower",
        reason=status,
    )


def capability(index: int) -> tuple[int, int] | None:
    """The compute capability of GPU `index`, (major, minor); None where it cannot be told."""
    runtime = _runtime()
    if runtime is None:
        return None
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if runtime.cudaDeviceGetAttribute(ctypes.byref(value), attribute, index) != 0:
            return None
        found.append(value.value)
    return found[0], found[1]


def _runtime() -> ctypes.CDLL | None:
    """CUDA's runtime library in this process."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    loaded = re.search(r"(/\S*libcudart\.so\S*)", maps)
    return None if loaded is None else ctypes.CDLL(loaded.group(1))
