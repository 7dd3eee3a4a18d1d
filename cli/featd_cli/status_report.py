"""What `featd status` shows: read from the catalog, the roots and the store."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from featd.errors import ConfigError, StoreUnavailableError
from featd.states import OF_THE_FILE, State
from featd.worker.shares import KINDS
from featd_cli import status_daemon
from featd_cli.status_daemon import Daemon

if TYPE_CHECKING:
    from featd.catalog.stats import FailureLine, ShardTotals, WorkerLine
    from featd.config import Settings
    from featd_cli.instance import Instance

LEASE_WARNING = 1 / 3
"""A lease with less than this part of its time left should have been renewed long ago."""


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
    unknown: dict[str, int] = field(default_factory=dict)
    """How many `files` and `bytes` of shards are in the store that the catalog does not know."""
    roots: int = 1
    daemon: Daemon = field(default_factory=Daemon)
    """The featd of this host."""
    next_due_seconds: float | None = None
    """Until the next pending image is due; read only where no worker is working."""
    waiting_roots: dict[str, str] = field(default_factory=dict)
    """Roots that are offline or not configured, and have pending images -> why."""
    offline: dict[str, str] = field(default_factory=dict)
    """Roots of the configuration that are offline -> their state."""
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """Images that are not finished."""
        return self.counts[State.PENDING] + self.counts[State.CLAIMED]

    @property
    def images_per_second(self) -> float:
        return round(sum((rate_of(worker) for worker in self.workers), 0.0), 2)

    @property
    def eta_seconds(self) -> float | None:
        rate = self.images_per_second
        return round(self.open / rate, 1) if rate > 0 and self.open else None


def look(instance: Instance) -> Report:
    """Read everything once. Rows of `images` are read by index only."""
    from featd.catalog import connect, counters, hosts, stats, values
    from featd.catalog import instance as identity

    settings = instance.settings
    daemon = status_daemon.look(settings.store.path)
    down = socket.gethostname() if daemon.down else None
    with instance.read() as conn:
        counts = counters.counts(conn)
        workers = [
            # A worker whose lease is open although its supervisor is gone is dead.
            replace(worker, shares={"state": "dead"}) if worker.host == down else worker
            for worker in stats.workers(conn)
        ]
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
            ingest=hosts.ingest_of_all(conn, down),
            decoders=settings.workers.decoders,
            unknown=values.get_value(conn, stats.UNKNOWN) or stats.NO_UNKNOWN,
            roots=len(settings.roots),
            daemon=daemon,
            next_due_seconds=stats.next_due_seconds(conn) if stuck else None,
            offline=_offline(settings),
            # With a fault in a root it is not known which roots there are.
            warnings=_foreign_roots(settings, stats.known_roots(conn)) if not instance.faults else [],
            waiting_roots=_waiting_roots(settings, stats.pending_roots(conn)) if stuck else {},
        )
    report.warnings.extend(f"configuration: {fault}" for fault in instance.faults)
    report.warnings.extend(_warnings(instance, report))
    return report


def state_of(worker: WorkerLine) -> str:
    """`working`, `idle`, `stopping` or `dead`; a worker that has not reported yet is `starting`."""
    told = worker.done or worker.failed
    return str(worker.shares.get("state", "working" if told else "starting"))


def rate_of(worker: WorkerLine) -> float:
    """Images per second, measured by the worker over the last seconds."""
    return float(worker.shares.get("images_per_second", 0.0))


def shares_of(worker: WorkerLine) -> dict[str, float]:
    """How a worker spends its time: parts of 1, all 0 where it has not reported yet."""
    told = worker.shares.get("share", {})
    return {kind: told.get(kind, 0.0) for kind in KINDS}


def _waiting_roots(settings: Settings, pending: set[str]) -> dict[str, str]:
    from featd.roots import RootState, root_state

    configured = {str(root.path) for root in settings.roots}
    why = {
        root: root_state(Path(root)) if root in configured else "not in the configuration" for root in pending
    }
    return {root: str(state) for root, state in sorted(why.items()) if state != RootState.ONLINE}


def _foreign_roots(settings: Settings, known: list[str]) -> list[str]:
    configured = {str(root.path) for root in settings.roots}
    return [
        f"root {root} is not in the configuration, and its images stay as they are: see `featd roots`"
        for root in known
        if root not in configured
    ]


def _offline(settings: Settings) -> dict[str, str]:
    from featd.roots import RootState, root_state

    states = {str(root.path): root_state(root.path) for root in settings.roots}
    return {root: str(state) for root, state in states.items() if state is not RootState.ONLINE}


def _warnings(instance: Instance, report: Report) -> list[str]:
    from featd.catalog import pairing

    settings = instance.settings
    found = []
    try:
        pairing.check(instance.catalog, settings.store.path)
    except (StoreUnavailableError, ConfigError) as error:
        found.append(f"store {error}")
    found.extend(status_daemon.troubles(report.daemon))
    notes = dict(report.ingest["notes"])
    for root, state in report.offline.items():
        found.append(f"root {root} is offline ({state}): images of this root keep their state")
        notes.pop(root, None)  # says the same
    found.extend(f"root {root}: {note}" for root, note in sorted(notes.items()))
    for root in sorted({root for worker in report.workers for root in worker.shares.get("doubted", {})}):
        found.append(f"root {root}: no file can be read; its images are tried again, and nothing is counted")
    for worker in report.workers:
        left = worker.expires_in_seconds
        if left < settings.workers.lease_seconds * LEASE_WARNING and state_of(worker) != "dead":
            found.append(
                f"worker {worker.device} on {worker.host} has not renewed its lease: it ends in {left:.0f} s"
            )
    return found


def holds_back(report: Report) -> str:
    """One sentence: what keeps featd from finishing, or from being faster."""
    if report.total == 0:
        if report.ingest["last_scan_at"]:
            return "no images found: no file under the roots matches their `include` patterns"
        return "not scanned yet: `featd run` looks for images and processes them"
    if report.workers and all(state_of(worker) == "dead" for worker in report.workers):
        return "featd was killed: start `featd run`; recovery is automatic"
    if not report.open:
        known = "every image that was found" if report.offline else "every image"
        return f"{known} is processed{_way_out(report)}"
    if not report.workers:
        if report.daemon.pid:
            return (
                f"no worker is ready yet: featd (pid {report.daemon.pid}) is loading the net, or see its log"
            )
        return "no worker is running: start `featd run`"
    working = [worker for worker in report.workers if state_of(worker) == "working"]
    if working:
        return _limit(report, working)
    if report.waiting_roots:
        names = ", ".join(f"{root} ({why})" for root, why in report.waiting_roots.items())
        return f"images are waiting for an offline root: {names}"
    if report.next_due_seconds:
        pending = report.counts[State.PENDING]
        if pending == 1:
            return f"1 image will be retried in {report.next_due_seconds:.0f} s"
        return f"{pending:,} images will be retried, the next one in {report.next_due_seconds:.0f} s"
    return "workers have just started; nothing is measured yet"


def _way_out(report: Report) -> str:
    """What to do about the images that failed."""
    failed = report.counts[State.FAILED]
    of_files = sum(line.count for line in report.failures if line.kind in OF_THE_FILE)
    again = "featd then tries them again" if report.daemon.pid else "`featd run` then tries them again"
    mend = f"repair or replace the files; {again}"
    if not failed:
        return ""
    if of_files == failed:
        return f"; {failed:,} failed: see `featd failures`, {mend}"
    some = f"; of these, {of_files:,} need other files: {mend}" if of_files else ""
    return f"; {failed:,} failed: see `featd failures`, try again with `featd retry-failed`{some}"


def _limit(report: Report, working: list[WorkerLine]) -> str:
    shares = {kind: fmean(shares_of(worker)[kind] for worker in working) for kind in KINDS}
    kind = max(KINDS, key=shares.__getitem__)
    if not shares[kind]:
        return "workers have just started; nothing is measured yet"
    percent = f"{shares[kind] * 100:.0f} %"
    verdicts = {
        "wait": f"workers are waiting for images ({percent} of the time)",
        "decode": f"bottleneck: decoding ({percent}); raise workers.decoders (now {report.decoders})",
        "forward": f"bottleneck: the network ({percent}); add devices to go faster",
        "write": f"bottleneck: writing ({percent}); the store's disk is slow",
    }
    return verdicts[kind]


def as_json(report: Report) -> dict[str, Any]:
    """The document of `featd status --json`."""
    return {
        "running": bool(report.daemon.pid),
        "instance": report.instance,
        "catalog": report.catalog,
        "fingerprint": report.fingerprint,
        "images": {"total": report.total, **report.counts},
        "shards": asdict(report.shards),
        "unknown": report.unknown,
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
                "images_per_second": rate_of(worker),
                "lease_expires_in": round(worker.expires_in_seconds, 1),
                "share": shares_of(worker),
            }
            for worker in report.workers
        ],
        "failures": [asdict(line) for line in report.failures],
        "ingest": report.ingest,
        "daemon": {"pid": report.daemon.pid, "failed_start": report.daemon.failed_start},
        "holds_back": holds_back(report),
        "warnings": report.warnings,
    }
