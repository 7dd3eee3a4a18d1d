"""What a supervisor tells about its children: one line for systemd, and one small file for `featd status`.

The file is `<store>/run/<host>/supervisor.json`. It exists while a supervisor runs. After a crash it is stale, so a
reader first checks whether the lock is held. `next_start_at` is of the host's monotonic clock. Beside it is
`failed_start.json` after a start that failed or an end that nobody asked for, until the next start that succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featd import clock
from featd.processes.child import Child

FILE = "supervisor.json"
FAILED_START = "failed_start.json"
WRITE_EVERY_SECONDS = 1.0


def state_of(child: Child, now: float) -> str:
    """One word."""
    if child.pid is None:
        if child.given_up is not None:
            return "down"
        if child.finished:
            return "finished"
        return "backing_off" if child.start_at > now else "waiting"
    if child.hung:
        return "hung"
    if child.asked_at is not None:
        return "restarting" if child.restarting else "stopping"
    return "ready" if child.ready else "starting"


def trouble(children: Iterable[Child], now: float) -> str:
    """The children that do not run, and why: `worker-1 is down (exit code 1)`; empty where all are well."""
    words = {
        "down": "is down",
        "backing_off": "died and will be started again",
        "hung": "makes no progress",
        "starting": "is starting again",
        "waiting": "will start again",
    }
    return ", ".join(
        f"{child.spec.name} {words[state]}" + (f" ({child.why})" if child.why else "")
        for child in children
        if (state := state_of(child, now)) == "hung" or (child.why and state in words)
    )


class StateFile:
    """Keeps the file up to date. Never raises: the file is only a hint."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._written: dict[str, Any] | None = None
        self._due = 0.0
        self._started_at = clock.utcnow().isoformat(timespec="seconds")

    def write(self, now: float, status: str, reload: str, children: Iterable[Child]) -> None:
        """Called every turn; writes when a child has changed, or once a second when the status has."""
        document = {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "status": status,
            "reload": reload,
            "children": [_document(child, now) for child in children],
        }
        before = self._written or {}
        if document == before or (document["children"] == before.get("children") and now < self._due):
            return
        self._written, self._due = document, now + WRITE_EVERY_SECONDS
        part = self._path.with_name(f"{FILE}.part")
        with contextlib.suppress(OSError):
            # Not fsynced: after a power cut nobody needs it.
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            part.rename(self._path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        forget_failed_start(
            self._path.parent
        )  # left by a second featd, which could not start beside this one


def leave_failed_start(folder: Path, message: str, exit_code: int) -> None:
    """Say for `featd status` why featd did not start, or could not go on. OSError."""
    document = {
        "at": clock.utcnow().isoformat(timespec="seconds"),
        "exit_code": exit_code,
        "message": message,
    }
    (folder / FAILED_START).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def forget_failed_start(folder: Path) -> None:
    """Remove what an earlier start that failed has left. Never raises."""
    with contextlib.suppress(OSError):
        (folder / FAILED_START).unlink(missing_ok=True)


def _document(child: Child, now: float) -> dict[str, Any]:
    state = state_of(child, now)
    return {
        "name": child.spec.name,
        "pid": child.pid,
        "state": state,
        "boot_failures": child.boot_failures,
        "deaths": child.deaths,
        "deaths_ever": child.deaths_ever,
        "next_start_at": round(child.start_at, 1) if state == "backing_off" else None,
        "why": child.why or None,
        "last_words": child.last_words or None,
    }
