"""What is known about featd on this host: from its locks, its supervisors' files and failed starts."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featd.paths import read_regular
from featd.processes.seats import identity_of, lock_of, seats_here
from featd.report.watched import Watched

if TYPE_CHECKING:
    from featd.catalog.stats import WorkerLine

MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Daemon:
    """The featd of this host, or of one of its seats. `pid`: that of the running supervisor, the first where several
    run. `down`: certainly none is running; without a store this is unknown."""

    pid: int | None = None
    down: bool = False
    says: dict[str, Any] = field(default_factory=dict)
    """The supervisor's file: children and last reload; empty where none runs."""
    failed_start: dict[str, Any] | None = None
    """`at`, `exit_code` and `message` of a start that failed or an end that nobody asked for, until the next start."""
    id: str | None = None
    """That of the seat."""
    seats: dict[str, Daemon] = field(default_factory=dict)
    """Each seat of this host; a seat has none itself."""

    @property
    def names(self) -> set[str]:
        """Of the seats of this host."""
        return {*self.seats} or {socket.gethostname()}

    @property
    def name(self) -> str:
        """Of the seat of this host, where it has one; else of the host."""
        return min(self.names) if len(self.names) == 1 else socket.gethostname()

    def down_seats(self, workers: Iterable[WorkerLine]) -> set[str]:
        """The seats that do not run here, nor anywhere else under their name, as far as these workers tell."""
        keys = {(worker.host, (worker.seat or "").partition(":")[0]) for worker in workers if worker.seat}
        moved = {name for name, id in keys if name in self.seats and id != self.seats[name].id}
        return {name for name, seat in self.seats.items() if seat.down} - moved


def look(watched: Watched) -> Daemon:
    """Look at the seats of this host, or at one of them."""
    names = [watched.seat] if watched.seat is not None else seats_here(watched.state)
    seats = {name: _look(watched, watched.state / name) for name in names}
    running = [seat for seat in seats.values() if seat.pid is not None]
    failed = {name: seat.failed_start for name, seat in seats.items() if seat.failed_start is not None}
    several = len(seats) > 1
    says = running[0].says if running else {}
    if several:
        told = {name: seat.says for name, seat in seats.items() if seat.says}
        reloads = [f"seat {name}: {one['reload']}" for name, one in told.items() if one.get("reload")]
        says = {
            **says,
            "reload": "; ".join(reloads),
            "children": [{**child, "seat": name} for name, one in told.items() for child in children_of(one)],
        }
        failed = {
            name: {**one, "message": f"seat {name}: {one.get('message')}"} for name, one in failed.items()
        }
    return Daemon(
        pid=running[0].pid if running else None,
        down=all(seat.down for seat in seats.values()),
        says=says,
        failed_start=next(iter(failed.values()), None),
        seats=seats,
    )


def _look(watched: Watched, folder: Path) -> Daemon:
    """A supervisor runs while the lock of its seat is held; only then its file is read."""
    from featd.shards.store import is_store
    from featd.supervisor.state_file import FAILED_START, FILE

    identity = identity_of(folder)
    seat_id = None if identity is None else identity.id
    try:
        fd = os.open(lock_of(folder), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Daemon(
            down=is_store(watched.store.path), failed_start=_read(folder / FAILED_START), id=seat_id
        )
    except OSError:
        return Daemon()
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).strip()
        return Daemon(pid=int(pid) if pid.isdigit() else 0, says=_read(folder / FILE) or {}, id=seat_id)
    finally:
        os.close(fd)
    return Daemon(down=True, failed_start=_read(folder / FAILED_START), id=seat_id)


def children_of(says: dict[str, Any]) -> list[dict[str, Any]]:
    """The children in a supervisor's file, which may be damaged."""
    children = says.get("children")
    return [child for child in (children if isinstance(children, list) else []) if isinstance(child, dict)]


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object that featd wrote; None for anything else, which must not break `featd status`."""
    try:
        found = json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def troubles(daemon: Daemon) -> list[str]:
    """One line for each child that does not work, for a refused configuration, and for a failed start."""
    found = [
        (f"seat {child['seat']}: " if "seat" in child else "")
        + f"{child.get('name')} is {str(child.get('state')).replace('_', ' ')}: {child['why']}"
        + (f" ({child['last_words']})" if child.get("last_words") else "")
        for child in children_of(daemon.says)
        if child.get("why") and child.get("state") not in ("ready", "finished")
    ]
    if daemon.says.get("reload"):
        found.append(str(daemon.says["reload"]))
    if daemon.failed_start is not None:
        found.append(f"featd stopped with an error: {daemon.failed_start.get('message')}")
    return found
