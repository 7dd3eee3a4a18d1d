"""What is known about featd on this host: from its lock, its supervisor's file and a failed start."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featd.paths import read_regular

MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Daemon:
    """`pid`: that of the running supervisor. `down`: certainly none is running; without a store this is unknown."""

    pid: int | None = None
    down: bool = False
    says: dict[str, Any] = field(default_factory=dict)
    """The supervisor's file: children and last reload; empty where none runs."""
    failed_start: dict[str, Any] | None = None
    """`at`, `exit_code` and `message` of a start that failed or an end that nobody asked for, until the next start."""


def look(store: Path) -> Daemon:
    """A supervisor runs while the lock of this store and host is held; only then its file is read."""
    from featd.shards.store import is_store
    from featd.supervisor.state_file import FAILED_START, FILE

    host = socket.gethostname()
    folder = store / "run" / host
    try:
        fd = os.open(store / "run" / f"{host}.lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Daemon(down=is_store(store), failed_start=_read(folder / FAILED_START))
    except OSError:
        return Daemon()
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).strip()
        return Daemon(pid=int(pid) if pid.isdigit() else 0, says=_read(folder / FILE) or {})
    finally:
        os.close(fd)
    return Daemon(down=True, failed_start=_read(folder / FAILED_START))


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object that featd wrote; None for anything else, which must not break `featd status`."""
    try:
        found = json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def troubles(daemon: Daemon) -> list[str]:
    """One line for each child that does not work, for a refused configuration, and for a failed start."""
    children = daemon.says.get("children")
    found = [
        f"{child.get('name')} is {str(child.get('state')).replace('_', ' ')}: {child['why']}"
        + (f" ({child['last_words']})" if child.get("last_words") else "")
        for child in (children if isinstance(children, list) else [])
        if isinstance(child, dict) and child.get("why") and child.get("state") not in ("ready", "finished")
    ]
    if daemon.says.get("reload"):
        found.append(str(daemon.says["reload"]))
    if daemon.failed_start is not None:
        found.append(f"featd stopped with an error: {daemon.failed_start.get('message')}")
    return found
