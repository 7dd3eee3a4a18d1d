"""The device of a check: a GPU, watched through NVML, or with --fake the CPU."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Card:
    """`limit_seconds`: that a part may take."""

    fake: bool
    limit_seconds: float = 170.0

    @property
    def device(self) -> str:
        return "cpu" if self.fake else "cuda:0"

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def threads(self) -> int:
        """Of the engine on the CPU."""
        return self.cores

    def machine(self) -> dict[str, Any]:
        """What is measured on."""
        versions = {}
        for name in ("onnxruntime-gpu", "onnxruntime", "torch", "numpy"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        told = {
            "fake": self.fake,
            "cores": self.cores,
            "python": platform.python_version(),
            "versions": versions,
        }
        if self.fake:
            return {"device": "a CPU in place of a GPU", **told}
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        pynvml.nvmlShutdown()
        return {"device": str(name), "memory": int(total), "driver": str(driver), **told}

    @contextlib.contextmanager
    def watched(self, every_seconds: float = 0.1) -> Iterator[Watched]:
        """Samples of the GPU as long as the block lasts; none of a CPU."""
        seen, over = Watched(), threading.Event()
        thread = threading.Thread(target=self._watch, args=(seen, over, every_seconds), daemon=True)
        if not self.fake:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            if not self.fake:
                thread.join()

    def _watch(self, seen: Watched, over: threading.Event, every_seconds: float) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not over.wait(every_seconds):
            seen.busy.append((time.monotonic(), int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)))
            seen.used.append(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used))
        pynvml.nvmlShutdown()


@dataclass
class Watched:
    """Moments with percent of the time that a kernel ran, and bytes in use."""

    busy: list[tuple[float, int]] = field(default_factory=list)
    used: list[int] = field(default_factory=list)

    def percent_busy(self) -> float | None:
        """From the middle of the work: between the first and the last moment at which the GPU had much to do, so that
        neither the start nor the end of a run counts. None where there are too few samples."""
        at = [index for index, (_, percent) in enumerate(self.busy) if percent >= 50]
        if not at or at[-1] - at[0] < 10:
            return None
        part = [percent for _, percent in self.busy[at[0] : at[-1] + 1]]
        return round(sum(part) / len(part), 1)
