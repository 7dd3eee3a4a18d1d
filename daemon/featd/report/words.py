"""Sentences and numbers of a report that a terminal and the page show alike."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import datetime

from rich import filesize

from featd import clock
from featd.ingest.scan_report import told_ignored
from featd.report.running import children_of
from featd.report.status import Report, state_of
from featd.states import State

NOT_RUNNING = "not running"
NOTHING_DONE = ", but nothing gets done"


def whole(text: str) -> str:
    """`text` as a sentence: with a capital, but for the name of featd, and a full stop."""
    begin = text[:1] if text.startswith("featd") else text[:1].upper()
    return f"{begin}{text[1:]}{'' if text.endswith('.') else '.'}"


def running(report: Report) -> tuple[bool | None, str]:
    """Whether featd runs on this host, None where that is not known; and the same in words."""
    daemon = report.daemon
    if daemon.pid and len(daemon.seats) > 1:
        runs = [f"{name} (pid {seat.pid})" for name, seat in daemon.seats.items() if seat.pid]
        rest = [name for name, seat in daemon.seats.items() if not seat.pid]
        told = f"running: {len(runs)} of {len(daemon.seats)} seats: {', '.join(runs)}"
        return True, told + (f"; not running: {', '.join(rest)}" if rest else "")
    if daemon.pid:
        since = str(daemon.says.get("started_at", ""))[:16].replace("T", " ")
        seat = "" if daemon.name == socket.gethostname() else f"seat {daemon.name}, "
        return True, f"running ({seat}pid {daemon.pid}" + (f", since {since} UTC)" if since else ")")
    if daemon.down:
        return False, NOT_RUNNING
    return None, "unknown whether featd runs: the store cannot be read"


def tone(report: Report) -> str:
    """How it stands: `good`, `warn` where something deserves a look, or `bad` where nothing gets done although there is
    work, or featd does not run."""
    runs, _ = running(report)
    working = any(state_of(worker) == "working" for worker in report.workers)
    if not runs or (report.open and report.warnings and not working and not _starting(report)):
        return "bad"
    return "warn" if report.pauses or report.warnings or report.notices or report.faults else "good"


def _starting(report: Report) -> bool:
    """Whether a worker loads its net, for the first time or after a reload."""
    return any(
        str(child.get("name")).startswith("worker") and child.get("state") in ("starting", "restarting")
        for child in children_of(report.daemon.says)
    )


def pauses(report: Report) -> list[str]:
    """What is paused, since when, why, and how it goes on."""
    here = report.daemon.name
    told = []
    for one in report.pauses:
        whom = "" if one.host in (None, here) else f"host {one.host} is "
        told.append(f"{whom}{one}; {one.ended_by(here)} goes on")
    return told


def percent(report: Report) -> str:
    """How much is processed. 99.97 % is not 100 %."""
    there = report.total - report.counts[State.GONE]
    return f"{(there - report.open) * 1000 // there / 10 if there else 0.0:.1f} %"


def last_scan(report: Report) -> str:
    """`never`, `3 min 20 s ago`."""
    at = report.ingest["last_scan_at"]
    if not at:
        return "never"
    return f"{duration((clock.utcnow() - datetime.fromisoformat(at)).total_seconds())} ago"


def ignored(report: Report) -> Counter[str]:
    """Files that the scans passed over, by extension."""
    return sum((Counter(kinds) for kinds in report.ingest.get("ignored", {}).values()), Counter[str]())


def files(report: Report) -> str:
    """What the scans passed over; empty where nothing was."""
    kinds = ignored(report)
    return told_ignored(kinds) if kinds else ""


def shards(report: Report) -> str:
    """How many shards there are, and what is in them."""
    made = report.shards
    told = f"{made.rows:,} vectors, {filesize.decimal(made.bytes)}"
    if made.rows > made.live_rows:
        told += f"; {made.rows - made.live_rows:,} superseded"
    if made.retired:
        told += f"; {made.retired:,} merged ones, removed soon"
    if unknown := report.unknown.get("files"):
        told += f"; {unknown:,} unknown, kept aside"
    return f"{made.count:,} ({told})"


def duration(seconds: float) -> str:
    """At most two units: `4 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0 s"
