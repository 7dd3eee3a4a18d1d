"""What `featd status` and the page show: read from the catalog, the roots and the store."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from featd import clock
from featd.config import places
from featd.errors import EXIT_ERROR, EXIT_OK, ConfigError, StoreUnavailableError
from featd.report import running
from featd.report.running import Daemon
from featd.report.watched import Watched
from featd.states import OF_THE_FILE, State
from featd.worker.shares import KINDS

if TYPE_CHECKING:
    import sqlalchemy as sa

    from featd.catalog.pause import Pause
    from featd.catalog.stats import FailureLine, ShardTotals, WorkerLine
    from featd.config import StoreConfig

FULL_BYTES = 1024 * 1024
NEW_SECONDS = 60.0
"""A worker that is older than this is not called new."""
SHARED = 0.05
"""Other programs with a larger part of a GPU's memory are told of."""
EXIT_NOT_RUNNING = 3
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
    pauses: list[Pause] = field(default_factory=list)
    """What `featd pause` has stopped: what holds for this host comes first."""
    unknown: dict[str, int] = field(default_factory=dict)
    """How many `files` and `bytes` of shards are in the store that the catalog does not know."""
    faulty: dict[str, str] = field(default_factory=dict)
    """Shards that images name and that were found missing, damaged or unreadable -> which."""
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
    """What is wrong and wants a person."""
    notices: list[str] = field(default_factory=list)
    """What is to be known, and may stay as it is; shown as warnings, too."""
    faults: tuple[str, ...] = ()
    """What is wrong in the configuration."""
    store_fault: str = ""
    """Why nothing can be written to the store; empty where it can, or where this user cannot tell."""
    store_unreadable: bool = False
    forgetting: bool = False
    """Whether a `featd forget` has not been finished."""
    room: dict[str, Any] = field(default_factory=dict)
    """Of the store's disk, in bytes: `free` (None where unknown), `min_free`, and `needed` by the images that are to do
    (None before the first shard). `lacking`: free is less than min_free, so that workers claim nothing."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """Images that are not finished."""
        return self.counts[State.PENDING] + self.counts[State.CLAIMED]

    @property
    def paused(self) -> Pause | None:
        """The pause that holds for this host: where it has several seats, for all that run."""
        of_all = next((one for one in self.pauses if one.host is None), None)
        mine = {one.host: one for one in self.pauses if one.host in self.daemon.names}
        runs = {name for name, seat in self.daemon.seats.items() if seat.pid} or self.daemon.names
        return of_all or (next(iter(mine.values())) if mine and runs <= mine.keys() else None)

    @property
    def images_per_second(self) -> float:
        return round(sum((rate_of(worker) for worker in self.workers), 0.0), 2)

    @property
    def eta_seconds(self) -> float | None:
        rate = self.images_per_second
        return round(self.open / rate, 1) if rate > 0 and self.open else None


def look(catalog: sa.Engine, watched: Watched, faults: Sequence[str] = ()) -> Report:
    """Read everything once. Rows of `images` are read by index only. faults: what is wrong in the configuration."""
    from featd.catalog import connect, counters, forget, hosts, pause, stats, values
    from featd.catalog import instance as identity

    store = watched.store
    daemon = running.look(watched)
    here = daemon.names
    with connect.reading(catalog) as conn:
        counts = counters.counts(conn)
        found = stats.workers(conn)
        down = daemon.down_seats(found)
        workers = [
            # A worker whose lease is open although its supervisor is gone is dead.
            replace(worker, shares={"state": "dead"}) if worker.host in down else worker
            for worker in found
        ]
        busy = any(state_of(worker) == "working" for worker in workers)
        stuck = bool(workers) and not busy and counts[State.PENDING] > 0
        report = Report(
            instance=identity.instance_id(conn),
            catalog=connect.shown_url(catalog),
            fingerprint=identity.fingerprint(conn),
            counts=counts,
            shards=(shards := stats.shard_totals(conn)),
            workers=workers,
            failures=stats.failures_by_kind(conn),
            ingest=hosts.ingest_of_all(conn, down),
            decoders=watched.decoders,
            # What holds for this host comes first.
            pauses=sorted(pause.pauses(conn), key=lambda one: one.host not in (None, *here)),
            faulty=_faulty(conn),
            unknown=values.get_value(conn, stats.UNKNOWN) or stats.NO_UNKNOWN,
            roots=len(watched.roots),
            daemon=daemon,
            next_due_seconds=stats.next_due_seconds(conn) if stuck else None,
            offline=_offline(watched),
            # With a fault in a root it is not known which roots there are.
            notices=_foreign_roots(watched, stats.known_roots(conn)) if not faults else [],
            faults=tuple(f"configuration: {fault}" for fault in faults),
            store_fault=_store_fault(store.path),
            forgetting=forget.read(conn) is not None,
            room=_room(store, counts, shards),
            store_unreadable=not os.access(store.path, os.R_OK | os.X_OK),
            waiting_roots=_waiting_roots(watched, stats.pending_roots(conn)) if stuck else {},
        )
    report.warnings.extend(_warnings(catalog, watched, report))
    return report


def exit_code(report: Report) -> int:
    """For `featd status --exit-code`: 0 healthy, 3 not running on this host, 1 failing: what the warnings tell wants a
    person, or nobody can tell whether featd runs. A pause is healthy; so are failed images, which are counted."""
    if report.daemon.down:
        return EXIT_NOT_RUNNING
    if not report.daemon.pid or report.faults or report.warnings:
        return EXIT_ERROR
    return EXIT_OK


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


def _waiting_roots(watched: Watched, pending: set[str]) -> dict[str, str]:
    from featd.roots import RootState, root_state

    folders = places(watched.roots)
    why = {
        root: root_state(Path(folders[root])) if root in folders else "not in the configuration"
        for root in pending
    }
    return {root: str(state) for root, state in sorted(why.items()) if state != RootState.ONLINE}


def _foreign_roots(watched: Watched, known: list[str]) -> list[str]:
    configured = {root.key for root in watched.roots}
    return [
        f"root {root} is not in the configuration, and its images stay as they are: see `featd roots`"
        for root in known
        if root not in configured
    ]


def _offline(watched: Watched) -> dict[str, str]:
    from featd.roots import RootState, root_state

    states = {root.key: root_state(root.path) for root in watched.roots}
    return {root: str(state) for root, state in states.items() if state is not RootState.ONLINE}


def _faulty(conn: sa.Connection) -> dict[str, str]:
    """What the slow round has found, of shards that images still name."""
    from featd.catalog import stats, verify

    told = stats.faulty_shards(conn)
    named = verify.checksums(conn, list(told))
    return {path: fault for path, fault in told.items() if path in named}


def _is_owner(store: Path) -> bool:
    """Whether this user is the one that featd works as: what another may read and write, this user cannot tell."""
    try:
        return store.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _store_fault(store: Path) -> str:
    """Why featd cannot write to the store; empty where it can, or where this user cannot tell."""
    from featd.shards.store import shards_folder

    try:
        disk = os.statvfs(store)
    except OSError:
        return ""
    if disk.f_flag & os.ST_RDONLY:
        return f"store {store}: the disk is mounted read-only"
    if disk.f_bavail * disk.f_frsize < FULL_BYTES:
        return f"store {store}: the disk is full"
    for folder in (store, shards_folder(store)):
        if _is_owner(store) and folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            return f"store {folder}: featd cannot write there: check its owner and mode"
    return ""


def _room(store: StoreConfig, counts: dict[State, int], shards: ShardTotals) -> dict[str, Any]:
    """What the report says of the store's disk."""
    from featd.catalog import stats
    from featd.shards.store import free_bytes, lacks_room

    free = None
    with contextlib.suppress(OSError):
        free = free_bytes(store.path)
    return {
        "free": free,
        "min_free": store.min_free,
        "needed": stats.bytes_needed(counts[State.PENDING] + counts[State.CLAIMED], shards),
        "lacking": lacks_room(store.path, store.min_free),
    }


def _make_room(daemon: Daemon) -> str:
    reload = f" and reload featd: `kill -HUP {daemon.pid}`" if daemon.pid else ""
    return f"make room, or lower store.min_free in featd.toml{reload}"


def _no_room(room: dict[str, Any], daemon: Daemon) -> str:
    """That workers claim nothing, with the numbers."""
    needed = f"; the images to do need about {decimal(room['needed'])}" if room["needed"] else ""
    return (
        f"the disk has {decimal(room['free'])} free, less than store.min_free ({decimal(room['min_free'])}), so workers"
        f" claim nothing{needed}: {_make_room(daemon)}"
    )


def _warnings(catalog: sa.Engine, watched: Watched, report: Report) -> list[str]:
    from featd.catalog import pairing
    from featd.roots import RootState

    store = watched.store.path
    found = []
    try:
        pairing.check(catalog, store, writable=False)
    except (StoreUnavailableError, ConfigError) as error:
        found.append(f"store {error}")
    if report.store_fault:
        found.append(report.store_fault)
    elif report.room["lacking"]:
        found.append(f"store {store}: {_no_room(report.room, report.daemon)}")
    if report.forgetting:
        report.notices.append(
            "a `featd forget` is not finished: a running featd goes on with it; or run it again to see what is left"
        )
    for path, fault in sorted(report.faulty.items()):
        found.append(f"shard {path} is {fault}: bring it back from a backup, or run `featd verify --repair`")
    found.extend(running.troubles(report.daemon))
    notes = dict(report.ingest["notes"])
    for root, state in report.offline.items():
        if state == RootState.UNREADABLE and not _is_owner(store):
            report.notices.append(f"root {root} cannot be read by this user; featd may be able to")
            continue
        found.append(f"root {root} is offline ({state}): images of this root keep their state")
        notes.pop(root, None)  # says the same
    found.extend(f"root {root}: {note}" for root, note in sorted(notes.items()))
    for root in sorted({root for worker in report.workers for root in worker.shares.get("doubted", {})}):
        found.append(f"root {root}: no file can be read; its images are tried again, and nothing is counted")
    for worker in report.workers:
        memory = worker.shares.get("device_memory") or {}
        if memory and memory["others"] > memory["total"] * SHARED:
            report.notices.append(
                f"worker {worker.device} on {worker.host}: other programs have {decimal(memory['others'])} of the GPU's"
                f" {decimal(memory['total'])}"
            )
        left = worker.expires_in_seconds
        if (
            left < _lease_of(worker, watched.lease_seconds, report.daemon.names) * LEASE_WARNING
            and state_of(worker) != "dead"
        ):
            found.append(
                f"worker {worker.device} on {worker.host} has not renewed its lease: it ends in {left:.0f} s"
            )
    return found


def _lease_of(worker: WorkerLine, lease_seconds: float, here: Collection[str]) -> float:
    """For how many seconds a worker renews its lease, as it says itself: another host has a configuration of its own.
    0 where that is not known."""
    mine = lease_seconds if worker.host in here else 0.0
    return float(worker.shares.get("lease_seconds", mine))


def holds_back(report: Report) -> str:
    """One sentence: what keeps featd from finishing, or from being faster."""
    if report.total == 0:
        return _nothing_found(report)
    if report.workers and all(state_of(worker) == "dead" for worker in report.workers):
        first = (
            f"; but first {_make_room(report.daemon)}" if report.open and report.room.get("lacking") else ""
        )
        return f"featd was killed: start `featd run`, and it goes on where it was{first}"
    if not report.open:
        partly = report.offline or report.ingest.get("notes") or not report.ingest["last_scan_at"]
        return f"every image{' that was found' if partly else ''} is processed{_way_out(report)}"
    if not report.workers:
        return _no_worker(report)
    if report.paused is not None:
        goes_on = report.paused.ended_by(report.daemon.name)
        return f"featd is paused: workers finish what they have and claim nothing more; {goes_on} goes on"
    if report.room.get("lacking"):
        return "images are waiting for room on the store's disk: see the warning"
    working = [worker for worker in report.workers if state_of(worker) == "working"]
    if working:
        return _limit(report, working)
    if all(state_of(worker) == "stopping" for worker in report.workers):
        return "workers are stopping: they finish what they have in hand"
    if report.waiting_roots:
        names = ", ".join(f"{root} ({why})" for root, why in report.waiting_roots.items())
        return f"images are waiting for a root that cannot be read: {names}"
    pending = report.counts[State.PENDING]
    if report.next_due_seconds:
        if pending == 1:
            return f"1 image will be retried in {report.next_due_seconds:.0f} s"
        return f"{pending:,} images will be retried, the next one in {report.next_due_seconds:.0f} s"
    if any(state_of(worker) == "starting" for worker in report.workers):
        return _not_measured(report.workers)
    if not pending:
        return f"the last {report.open:,} images are claimed: a worker has them, or they return when its lease ends"
    images = "1 image" if pending == 1 else f"{pending:,} images"
    return f"workers are about to take {images}; if this stays, see the log of featd"


def _nothing_found(report: Report) -> str:
    """Why the catalog has no image."""
    if not report.roots:
        return "no images found: the configuration has no [[roots]]"
    if report.offline:
        names = ", ".join(f"{root} ({state})" for root, state in report.offline.items())
        return f"no images found: not every root can be read: {names}"
    if not report.ingest["last_scan_at"]:
        if report.daemon.pid or report.ingest["scanned_by"] or report.ingest["watching"]:
            return "not scanned yet: featd is running, and its first scan is not finished"
        return "not scanned yet: `featd run` looks for images and processes them"
    if report.ingest.get("notes"):
        return "no images found: see the warnings about the roots"
    ignored = sum((Counter(kinds) for kinds in report.ingest.get("ignored", {}).values()), Counter[str]())
    links = ignored.pop("links", 0)
    linked = "1 symbolic link was" if links == 1 else f"{links:,} symbolic links were"
    passed = f"{linked} passed over: see `follow_symlinks`" if links else ""
    if passed and not ignored:
        return f"no images found: {passed}"
    if ignored or passed:
        match = f"none of {ignored.total():,} files matches the `include` patterns of its root"
        return f"no images found: {match}" + (f", and {passed}" if passed else "")
    return "no images found: the roots have no files, or `exclude` leaves them out"


def _no_worker(report: Report) -> str:
    """Why no worker has a lease, although images are waiting."""
    daemon = report.daemon
    if not daemon.pid:
        if elsewhere := sorted(set(report.ingest["scanned_by"].values()) - daemon.names):
            return f"no worker is running: featd runs on {', '.join(elsewhere)}, and not on this host"
        if daemon.failed_start is not None:
            return "no worker is running: see the warning, then start `featd run`"
        if not daemon.down and report.store_unreadable:
            return "no worker is running; whether featd runs is unknown, as the store cannot be read"
        return "no worker is running: start `featd run`"
    for child in running.children_of(daemon.says):
        if str(child.get("name")).startswith("worker") and child.get("why"):
            words = f": {child['last_words']}" if child.get("last_words") else ""
            state = str(child.get("state")).replace("_", " ")
            return f"no worker can start: {child['name']} is {state}: {child['why']}{words}"
    if report.store_fault:
        return f"no worker can start: {report.store_fault}"
    return f"no worker is ready yet: featd (pid {daemon.pid}) is loading the net; if this stays, see its log"


def _not_measured(workers: list[WorkerLine]) -> str:
    age = max((clock.utcnow() - worker.started_at).total_seconds() for worker in workers)
    if age < NEW_SECONDS:
        return "workers have just started; nothing is measured yet"
    return f"workers have reported no finished step for {age:.0f} s: see the log of featd"


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
        return _not_measured(working)
    percent = f"{shares[kind] * 100:.0f} %"
    verdicts = {
        "wait": f"workers waited for images for {percent} of the last 30 s, as they do when new ones have just come; if"
        " this stays so for minutes, the catalog is slow: `featd doctor`",
        "decode": f"bottleneck: decoding ({percent}); raise workers.decoders (now {report.decoders})",
        "forward": f"bottleneck: the neural net ({percent}); add devices to go faster",
        "write": f"bottleneck: writing ({percent}); the store's disk or the catalog is slow",
    }
    return verdicts[kind]


def as_json(report: Report) -> dict[str, Any]:
    """The document of `featd status --json`."""
    return {
        "running": bool(report.daemon.pid),
        "paused": report.paused is not None,
        "pauses": [asdict(one) for one in report.pauses],
        "instance": report.instance,
        "catalog": report.catalog,
        "fingerprint": report.fingerprint,
        "images": {"total": report.total, **report.counts},
        "shards": asdict(report.shards),
        "room": report.room,
        "unknown": report.unknown,
        "faulty_shards": report.faulty,
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
                "device_memory": worker.shares.get("device_memory"),
            }
            for worker in report.workers
        ],
        "failures": [asdict(line) for line in report.failures],
        "ingest": report.ingest,
        "daemon": {
            "pid": report.daemon.pid,
            "failed_start": report.daemon.failed_start,
            "seats": {
                name: {"pid": seat.pid, "failed_start": seat.failed_start}
                for name, seat in report.daemon.seats.items()
            },
        },
        "holds_back": holds_back(report),
        "warnings": [*report.faults, *report.warnings, *report.notices],
    }
