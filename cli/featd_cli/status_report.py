"""What `featd status` knows: read from the catalog, from the roots and from the store, in one look."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featd.errors import StoreUnavailableError
from featd.states import State

if TYPE_CHECKING:
    from featd.catalog.stats import FailureLine, ShardTotals, WorkerLine
    from featd.config import Settings
    from featd_cli.instance import Instance

LEASE_WARNING = 1 / 3
"""A lease is renewed long before so little of it is left."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown."""

    instance: str
    catalog: str
    fingerprint: str | None
    counts: dict[State, int]
    shards: ShardTotals
    workers: list[WorkerLine]
    failures: list[FailureLine]
    ingest: dict[str, Any]
    decoders: int
    next_due_seconds: float | None = None
    """Until the next pending image is due; looked for only where no worker is working."""
    waiting_roots: dict[str, str] = field(default_factory=dict)
    """Roots that are offline or not configured, and have pending images -> why."""
    supervisor_pid: int | None = None
    """Of a featd that runs on this host; looked for only where no worker is."""
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """Images that still want work."""
        return self.counts[State.PENDING] + self.counts[State.CLAIMED]

    @property
    def images_per_second(self) -> float:
        return round(
            sum((float(worker.shares.get("images_per_second", 0.0)) for worker in self.workers), 0.0), 2
        )

    @property
    def eta_seconds(self) -> float | None:
        rate = self.images_per_second
        return round(self.open / rate, 1) if rate > 0 and self.open else None


def look(instance: Instance) -> Report:
    """One look at everything. Reads no row of `images` but by an index."""
    from featd.catalog import connect, counters, stats
    from featd.catalog import instance as identity

    settings = instance.settings
    with instance.read() as conn:
        counts = counters.counts(conn)
        workers = stats.workers(conn)
        busy = any(state_of(worker) == "working" for worker in workers)
        stuck = bool(workers) and not busy and counts[State.PENDING] > 0
        report = Report(
            instance=identity.instance_id(conn),
            catalog=connect.shown_url(instance.catalog),
            fingerprint=identity.fingerprint(conn),
            counts=counts,
            shards=stats.shard_totals(conn),
            workers=workers,
            failures=stats.failures_by_kind(conn),
            ingest={
                "watching": 0,
                "last_scan_at": None,
                "overflows": 0,
                **(counters.get_value(conn, "ingest") or {}),
            },
            decoders=settings.workers.decoders,
            next_due_seconds=stats.next_due_seconds(conn) if stuck else None,
            waiting_roots=_waiting_roots(settings, stats.pending_roots(conn)) if stuck else {},
            supervisor_pid=None if workers else running_supervisor(settings.store.path),
        )
    report.warnings.extend(_warnings(settings, report))
    return report


def state_of(worker: WorkerLine) -> str:
    """`working`, `idle`, `stopping`; a worker that has not reported yet is `starting`."""
    return str(worker.shares.get("state", "starting"))


def running_supervisor(store: Path) -> int | None:
    """The pid of a featd that runs on this store and host: whoever holds its lock."""
    try:
        fd = os.open(store / "run" / f"{socket.gethostname()}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 32, 0).strip() or 0)
    finally:
        os.close(fd)
    return None


def supervisor_says(store: Path) -> dict[str, Any]:
    """What a running supervisor of this host tells of its children and of the last reload; empty if none runs."""
    if running_supervisor(store) is None:
        return {}
    try:
        found = json.loads(
            (store / "run" / socket.gethostname() / "supervisor.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _troubles(said: dict[str, Any]) -> list[str]:
    """One line for each child that is not at work, and for a configuration that was refused."""
    found = [
        f"{child['name']} is {child['state'].replace('_', ' ')}: {child['why']}"
        + (f" ({child['last_words']})" if child.get("last_words") else "")
        for child in said.get("children", [])
        if child.get("why") and child["state"] not in ("ready", "finished")
    ]
    return [*found, said["reload"]] if said.get("reload") else found


def _waiting_roots(settings: Settings, pending: set[str]) -> dict[str, str]:
    from featd.paths import RootState, root_state

    configured = {str(root.path) for root in settings.roots}
    why = {
        root: root_state(Path(root)) if root in configured else "not in the configuration" for root in pending
    }
    return {root: str(state) for root, state in sorted(why.items()) if state != RootState.ONLINE}


def _warnings(settings: Settings, report: Report) -> list[str]:
    from featd.paths import RootState, root_state
    from featd.shards.store import check_store

    found = []
    try:
        check_store(settings.store.path, report.instance)
    except StoreUnavailableError as error:
        found.append(f"store {error}")
    found.extend(_troubles(supervisor_says(settings.store.path)))
    for root in settings.roots:
        state = root_state(root.path)
        if state is not RootState.ONLINE:
            found.append(f"root {root.path} is offline ({state}): its images keep their state")
    if report.workers:
        found.extend(f"root {root}: {note}" for root, note in sorted(report.ingest.get("notes", {}).items()))
    for worker in report.workers:
        if worker.expires_in_seconds < settings.workers.lease_seconds * LEASE_WARNING:
            found.append(
                f"worker {worker.device} on {worker.host} has not renewed its lease: it ends in"
                f" {worker.expires_in_seconds:.0f} s"
            )
    return found


def holds_back(report: Report) -> str:
    """One sentence: what keeps featd from being done, or from being faster."""
    if report.total == 0:
        return "no image is known yet: " + (
            "no file under the roots is an image by their `include`"
            if report.ingest["last_scan_at"]
            else "start `featd run`, or look for them with `featd scan`"
        )
    if not report.open:
        failed = report.counts[State.FAILED]
        return "nothing is left to do" + (
            f"; {failed:,} failed: see `featd failures`, try again with `featd retry-failed`"
            if failed
            else ""
        )
    if not report.workers:
        if report.supervisor_pid:
            return f"no worker is at work yet: featd (pid {report.supervisor_pid}) loads the net, or its log says why"
        return "no worker is running: start `featd run`"
    working = [worker for worker in report.workers if state_of(worker) == "working"]
    if working:
        return _limit(report, working)
    if report.waiting_roots:
        names = ", ".join(f"{root} ({why})" for root, why in report.waiting_roots.items())
        return f"images wait for a root that is out of reach: {names}"
    if report.next_due_seconds:
        images = f"{report.counts[State.PENDING]:,} images wait" if report.open > 1 else "1 image waits"
        return f"{images} for a back-off or for the file to rest; next in {report.next_due_seconds:.0f} s"
    return "a worker has just started: nothing is measured yet"


def _limit(report: Report, working: list[WorkerLine]) -> str:
    shares: dict[str, float] = {}
    for worker in working:
        for kind, share in worker.shares.get("share", {}).items():
            shares[kind] = shares.get(kind, 0.0) + share / len(working)
    if not any(shares.values()):
        return "a worker has just started: nothing is measured yet"
    kind = max(shares, key=lambda name: shares[name])
    percent = f"{shares[kind] * 100:.0f} %"
    match kind:
        case "decode":
            return f"decoding is the limit ({percent} of the time): raise workers.decoders (now {report.decoders})"
        case "forward":
            return f"the net is the limit ({percent} of the time), as it should be: more devices would help"
        case "write":
            return f"writing is the limit ({percent} of the time): the store's disk is slow"
        case _:
            return f"the workers wait for images ({percent} of the time): nothing more was claimable"


def as_json(report: Report) -> dict[str, Any]:
    """The document of `featd status --json`."""
    return {
        "instance": report.instance,
        "catalog": report.catalog,
        "fingerprint": report.fingerprint,
        "images": {"total": report.total, **{state.value: report.counts[state] for state in State}},
        "shards": {
            "count": report.shards.count,
            "rows": report.shards.rows,
            "live_rows": report.shards.live_rows,
            "bytes": report.shards.bytes,
        },
        "rate": {"images_per_second": report.images_per_second, "eta_seconds": report.eta_seconds},
        "workers": [
            {
                "device": worker.device,
                "host": worker.host,
                "pid": worker.pid,
                "engine": worker.engine,
                "state": state_of(worker),
                "done": worker.done,
                "failed": worker.failed,
                "images_per_second": float(worker.shares.get("images_per_second", 0.0)),
                "lease_expires_in": round(worker.expires_in_seconds, 1),
                "share": {
                    **dict.fromkeys(("wait", "decode", "forward", "write"), 0.0),
                    **worker.shares.get("share", {}),
                },
            }
            for worker in report.workers
        ],
        "failures": [
            {"kind": line.kind, "count": line.count, "example": line.example} for line in report.failures
        ],
        "ingest": report.ingest,
        "holds_back": holds_back(report),
        "warnings": report.warnings,
    }
