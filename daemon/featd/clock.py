"""The only module that reads clocks. Times are aware and in UTC; durations are in seconds.

Leases on SQLite use the boot clock: it does not jump when the wall clock is set, and continues during suspend.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path


def utcnow() -> datetime:
    """Now, aware and in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds, for intervals inside one process and its children (same clock on one host)."""
    return time.monotonic()


def boottime() -> float:
    """Seconds since this host booted, suspend included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Identifies this boot of this host; after another boot all earlier processes are dead."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)
