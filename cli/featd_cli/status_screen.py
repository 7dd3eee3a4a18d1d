"""`featd status` for people: never wider or higher than asked for, whatever the paths."""

from __future__ import annotations

import re
import socket
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from rich.cells import cell_len

from featd import clock
from featd.catalog.stats import WorkerLine
from featd.states import State
from featd_cli.console import shown, styled
from featd_cli.status_report import Report, holds_back, rate_of, state_of

WIDTH = 80
MAX_WIDTH = 120
HIGH = 24
"""A terminal with so many lines has room for empty lines."""
BESIDE_BAR = 34
BESIDE_TIME = 58
_COMMAND = re.compile(r"`[^`]*`")
COLOURS = {State.DONE: "green", State.FAILED: "red", State.CLAIMED: "cyan"}
STATE_COLOURS = {"working": "green", "dead": "red", "stopping": "yellow"}
TIMES = {
    "wait": ("░", ".", "bright_black"),
    "decode": ("▒", "d", "yellow"),
    "forward": ("█", "#", "green"),
    "write": ("▓", "w", "magenta"),
}
"""How a worker spends its time: a block, a character, and a colour for each kind."""


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of a report is shown; None means all."""

    whole_head: bool = True
    gaps: bool = True
    two_lines: bool = True
    """Two lines for each worker."""
    workers: int | None = None
    failures: int | None = None
    warnings: int | None = None


LEVELS = (
    Detail(),
    Detail(two_lines=False),
    Detail(two_lines=False, failures=3),
    Detail(two_lines=False, failures=3, warnings=2, whole_head=False),
    Detail(two_lines=False, failures=1, warnings=1, whole_head=False, gaps=False),
    Detail(two_lines=False, failures=0, warnings=1, whole_head=False, gaps=False, workers=0),
    Detail(two_lines=False, failures=0, warnings=0, whole_head=False, gaps=False, workers=0),
)
"""From everything to only the most important."""


def lines(report: Report, *, blocks: bool, width: int = WIDTH, detail: Detail = LEVELS[0]) -> list[str]:
    """The screen, line by line. `blocks`: the terminal can show block characters."""
    parts = [
        list(_head(report, width, blocks, detail)),
        list(_images(report, width, blocks)),
        list(_workers(report, width, blocks, detail)),
        list(_failures(report, width, detail)),
        list(_verdict(report, width, detail)),
    ]
    gap = [""] if detail.gaps else []
    found: list[str] = []
    for part in parts:
        found += [*(gap if found and part else ()), *part]
    return found


def fitted(report: Report, *, blocks: bool, width: int, height: int) -> list[str]:
    """As much of the report as fits into `height` lines; what is left out of a list is counted."""
    width = min(width, MAX_WIDTH)
    for level in LEVELS:
        found = lines(report, blocks=blocks, width=width, detail=level)
        over = len(found) - height
        if over <= 0:
            return found
        some = len(report.workers) - over - 1
        if not level.two_lines and level.workers is None and some > 1:
            return lines(report, blocks=blocks, width=width, detail=replace(level, workers=some))
    return [*_images(report, width, blocks), *_verdict(report, width, LEVELS[-1])][:height]


def _head(report: Report, width: int, blocks: bool, detail: Detail) -> Iterator[str]:
    yield _running(report, blocks)
    yield styled(clip(f"catalog  {shown(report.catalog)}", width, 9), bold=True)
    if not detail.whole_head:
        return
    fingerprint = report.fingerprint[:12] if report.fingerprint else "none yet"
    yield f"instance {report.instance[:8]}   fingerprint {fingerprint}"
    by = sorted(set(report.ingest["scanned_by"].values()))
    elsewhere = f" by {shown(', '.join(by))}" if by not in ([], [socket.gethostname()]) else ""
    yield clip(
        f"roots    {report.roots}   watched {report.ingest['watching']}   last scan {_ago(report)}{elsewhere}",
        width,
        30,
    )
    shards = report.shards
    yield (
        f"shards   {shards.count:,} with {shards.rows:,} vectors, {size(shards.bytes)}"
        + (f"; {shards.rows - shards.live_rows:,} superseded" if shards.rows > shards.live_rows else "")
    )


def _running(report: Report, blocks: bool) -> str:
    """Whether featd runs on this host."""
    daemon = report.daemon
    if daemon.pid:
        since = str(daemon.says.get("started_at", ""))[:16].replace("T", " ")
        told = f"running (pid {daemon.pid}" + (f", since {since} UTC)" if since else ")")
        return styled(f"{'●' if blocks else '*'} {told}", fg="green", bold=True)
    if daemon.down:
        return styled(f"{'○' if blocks else '-'} not running", fg="yellow", bold=True)
    return styled("? unknown whether featd runs: the store cannot be read", fg="yellow", bold=True)


def _ago(report: Report) -> str:
    at = report.ingest["last_scan_at"]
    if not at:
        return "never"
    return f"{duration((clock.utcnow() - datetime.fromisoformat(at)).total_seconds())} ago"


def _images(report: Report, width: int, blocks: bool) -> Iterator[str]:
    there = report.total - report.counts[State.GONE]
    done = report.counts[State.DONE]
    share = done / there if there else 0.0
    bar = max(10, width - BESIDE_BAR)
    filled = int(bar * share)  # full only when everything is done
    bad_share = report.counts[State.FAILED] / there if there else 0.0
    failed = min(bar - filled, max(round(bar * bad_share), bool(bad_share)))
    full, bad, empty = ("█", "█", "░") if blocks else ("#", "x", ".")
    # 99.97 % is not 100 %.
    percent = f"{int(share * 1000) / 10:.1f} %"
    yield (
        f"{styled(full * filled, fg='green')}{styled(bad * failed, fg='red')}{empty * (bar - filled - failed)}"
        f" {percent:>7} of {there:,} images"
    )
    digits = max(len(f"{report.total:,}"), 6)
    cells = [
        styled(
            f"{state:<8}{report.counts[state]:>{digits},}",
            fg=COLOURS.get(state) if report.counts[state] else None,
        )
        for state in (State.PENDING, State.CLAIMED, State.DONE, State.FAILED, State.GONE)
    ]
    cells.append(f"{'total':<8}{report.total:>{digits},}")
    yield "   ".join(cells[:3])
    yield "   ".join(cells[3:])
    rate = f"{'rate':<8}{report.images_per_second:>{digits},.1f} images/s"
    yield rate + (f", about {duration(report.eta_seconds)} left" if report.eta_seconds is not None else "")


def _workers(report: Report, width: int, blocks: bool, detail: Detail) -> Iterator[str]:
    if not report.workers:
        yield styled("workers: none", bold=True)
        return
    room = max(4, min(40, width - BESIDE_TIME))
    head = f"{'workers':<9}{'state':<9}{'images/s':>8}{'done':>13}{'failed':>9}  {'time':<{room}}  lease"
    shown_workers = report.workers[: detail.workers]
    if not shown_workers:
        at_work = sum(state_of(worker) == "working" for worker in report.workers)
        yield styled(f"workers: {len(report.workers)}, {at_work} working", bold=True)
        return
    yield styled(head, bold=True)
    several = len({worker.host for worker in report.workers}) > 1
    for worker in shown_workers:
        state = state_of(worker)
        share = worker.shares.get("share", {})
        yield (
            f"{worker.device:<9}{styled(f'{state:<9}', fg=STATE_COLOURS.get(state))}"
            f"{rate_of(worker):>8,.1f}{worker.done:>13,}{worker.failed:>9,}"
            f"  {_time_bar(share, room, blocks)}  {min(worker.expires_in_seconds, 999):>3.0f} s"
        )
        if detail.two_lines:
            yield _worker_detail(worker, share, several, width, blocks)
    if left := len(report.workers) - len(shown_workers):
        yield f"... and {left} more"


def _time_bar(share: Mapping[str, float], room: int, blocks: bool) -> str:
    """A bar of `room` characters, divided by how a worker spends its time."""
    if not any(share.values()):
        return " " * room
    total = sum(share.values())
    bar, before, sofar = "", 0, 0.0
    for kind, (block, letter, colour) in TIMES.items():
        sofar += share.get(kind, 0.0) / total
        upto = round(room * sofar)
        bar += styled((block if blocks else letter) * (upto - before), fg=colour) if upto > before else ""
        before = upto
    return bar


def _worker_detail(
    worker: WorkerLine, share: Mapping[str, float], several: bool, width: int, blocks: bool
) -> str:
    """The second line of a worker: who it is, and the key to its bar."""
    if not any(share.values()):
        return clip(f"  {_who(worker, several)}", width, 2)
    plain = "  ".join(f"*{kind} {share.get(kind, 0.0) * 100:.0f}%" for kind in TIMES)
    key = plain
    for kind, (block, letter, colour) in TIMES.items():
        key = key.replace(f"*{kind}", styled(block if blocks else letter, fg=colour) + kind)
    room = width - len(plain) - 2
    who = clip(f"  {_who(worker, several)}", room, 2)
    return f"{who}{' ' * (room - cell_len(who))}  {key}"


def _who(worker: WorkerLine, several: bool) -> str:
    return f"{shown(worker.host) if several else worker.engine}, pid {worker.pid}"


def _failures(report: Report, width: int, detail: Detail) -> Iterator[str]:
    some = report.failures[: detail.failures]
    if not some:
        return
    yield styled("failed with kind           images  example", bold=True)
    for line in some:
        yield clip(f"{line.kind:<20}{line.count:>13,}  {shown(line.example)}", width, 35)
    if rest := report.failures[len(some) :]:
        yield f"{f'{len(rest)} more kinds':<20}{sum(line.count for line in rest):>13,}"


def _verdict(report: Report, width: int, detail: Detail) -> Iterator[str]:
    sentence = holds_back(report)
    yield from wrap(shown(sentence[0].upper() + sentence[1:] + "."), width)
    some = report.warnings[: detail.warnings]
    for warning in some:
        first, *rest = wrap(shown(f"warning: {warning}"), width, indent="  ")
        yield styled(first, fg="yellow")
        yield from rest
    if left := len(report.warnings) - len(some):
        yield styled(f"{left} more {'warning' if left == 1 else 'warnings'}", fg="yellow")


def clip(text: str, width: int, keep: int) -> str:
    """`text` cut to `width` columns: its first `keep` characters, and its end, which distinguishes paths."""
    if cell_len(text) <= width:
        return text
    head, tail = text[:keep], text[keep:]
    while tail and cell_len(head) + 1 + cell_len(tail) > width:
        tail = tail[1:]
    return f"{head}…{tail}"


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in lines; a command between backticks is not broken."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    wrapped = textwrap.wrap(whole, width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in wrapped]


def duration(seconds: float) -> str:
    """At most two units: `4 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0 s"


def size(count: float) -> str:
    """A size in bytes, in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
