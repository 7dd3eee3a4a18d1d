"""Lack of memory: what engines say of it, and how often the kernel has killed for it, which explains a SIGKILL."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from featd import clock

_CGROUPS = Path("/sys/fs/cgroup")
_SAID = re.compile(
    r"out.of.memory|bad.alloc|failed to allocate memory|cannot allocate memory|alloc_failed|host allocation of size"
    r"|MemoryError",
    re.IGNORECASE,
)
"""What Caffe, ONNX Runtime, CUDA with its libraries, C++, the C library and Python say."""


def says_out_of_memory(text: str) -> bool:
    """Whether an engine's message means that memory was short, the device's or the machine's."""
    return _SAID.search(text) is not None


def is_out_of_memory(error: Exception) -> bool:
    """The same of an error that was raised."""
    return isinstance(error, MemoryError) or says_out_of_memory(str(error))


def oom_kills() -> int:
    """Kills so far, of this host and of this process's control group (v2, v1) added up; 0 where unreadable."""
    total = _count(Path("/proc/vmstat"), "oom_kill")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                total += _count(_CGROUPS / path.lstrip("/") / "memory.events", "oom_kill")
            elif controllers == "memory":
                total += _count(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control", "oom_kill")
    return total


class OomWatch:
    """Reads the count regularly, and compares with the reading before the last one: a kill is counted a moment before
    its process is dead, and an old one does not explain a new death."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._seen = self._before = oom_kills()
        self._due = clock.monotonic() + every_seconds

    def look(self, now: float) -> None:
        """Called every turn; `now` is monotonic."""
        if now >= self._due:
            self._due = now + self._every_seconds
            self._before, self._seen = self._seen, oom_kills()

    def has_killed(self) -> bool:
        """Whether the kernel has killed something here just now."""
        return oom_kills() > self._before


def _count(file: Path, word: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == word:
                return int(value)
    return 0
