"""How full the GPU of a worker is, and what other programs have of its memory. Untested on hardware."""

from __future__ import annotations

import os

from featd import logs
from featd.processes import nvml
from featd.worker.plan import WorkerPlan

log = logs.get("worker")

EVERY_SECONDS = 30.0


def tell(plan: WorkerPlan) -> None:
    """Log what is in use, before the net is loaded and where memory was short. Nothing is known of the CPU here."""
    memory = _look(plan)
    if memory is None:
        return
    fields = {"device": plan.label, "used": memory.used, "total": memory.total}
    if memory.others:
        log.warning("device_shared", f"other programs have memory of {plan.label}: {memory.told()}", **fields)
    else:
        log.info("device_memory", f"{memory.used / memory.total:.0%} of the memory is in use", **fields)


class Watch:
    """`seen`: bytes `total`, `used`, and `others` of other programs; None on the CPU, and where the driver cannot be
    asked."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan = plan
        self._due = 0.0
        self.seen: dict[str, int] | None = None

    def step(self, now: float) -> None:
        """One turn of the main loop, whose heartbeat notices where the driver hangs. `now` is monotonic."""
        if self._plan.device == "cpu" or now < self._due:
            return
        self._due = now + EVERY_SECONDS
        memory = _look(self._plan)
        self.seen = None
        if memory is not None:
            self.seen = {"total": memory.total, "used": memory.used, "others": memory.of_others}


def _look(plan: WorkerPlan) -> nvml.Memory | None:
    # The worker sees its own GPU alone, under the name that it was given.
    return None if plan.device == "cpu" else nvml.memory(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
