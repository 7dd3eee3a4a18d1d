"""`featd status` for people: at most 80 columns, whatever the paths."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from datetime import datetime

from rich.cells import cell_len

from featd import clock
from featd.states import State
from featd_cli.console import shown, styled
from featd_cli.status_report import Report, holds_back, state_of

WIDTH = 80
BAR = 46
_COMMAND = re.compile(r"`[^`]*`")
COLOURS = {State.DONE: "green", State.FAILED: "red", State.CLAIMED: "cyan"}


def lines(report: Report, *, blocks: bool) -> Iterator[str]:
    """The screen, line by line. `blocks`: the terminal can show block characters."""
    yield from _head(report)
    yield ""
    yield from _images(report, blocks)
    yield ""
    yield from _workers(report)
    if report.failures:
        yield ""
        yield from _failures(report)
    yield ""
    sentence = holds_back(report)
    yield from wrap(shown(sentence[0].upper() + sentence[1:] + "."))
    for warning in report.warnings:
        first, *rest = wrap(shown(f"warning: {warning}"), indent="  ")
        yield styled(first, fg="yellow")
        yield from rest


def _head(report: Report) -> Iterator[str]:
    fingerprint = report.fingerprint[:12] if report.fingerprint else "none yet"
    yield styled(clip(f"catalog  {shown(report.catalog)}", WIDTH, 9), bold=True)
    yield f"instance {report.instance[:8]}   fingerprint {fingerprint}   last scan {_ago(report)}"
    shards = report.shards
    yield (
        f"shards   {shards.count:,} with {shards.rows:,} vectors, {size(shards.bytes)}"
        + (f"; {shards.rows - shards.live_rows:,} superseded" if shards.rows > shards.live_rows else "")
    )


def _ago(report: Report) -> str:
    at = report.ingest["last_scan_at"]
    if not at:
        return "never"
    return f"{duration((clock.utcnow() - datetime.fromisoformat(at)).total_seconds())} ago"


def _images(report: Report, blocks: bool) -> Iterator[str]:
    there = report.total - report.counts[State.GONE]
    done = report.counts[State.DONE]
    share = done / there if there else 0.0
    filled = int(BAR * share)  # full only when all is done
    full, empty = ("█", "░") if blocks else ("#", ".")
    # 99.97 % is not 100 %.
    percent = f"{int(share * 1000) / 10:.1f} %"
    yield f"{styled(full * filled, fg='green')}{empty * (BAR - filled)} {percent:>7} of {there:,} images"
    width = max(len(f"{report.total:,}"), 6)
    cells = [
        styled(
            f"{state:<8}{report.counts[state]:>{width},}",
            fg=COLOURS.get(state) if report.counts[state] else None,
        )
        for state in (State.PENDING, State.CLAIMED, State.DONE, State.FAILED, State.GONE)
    ]
    cells.append(f"{'total':<8}{report.total:>{width},}")
    yield "   ".join(cells[:3])
    yield "   ".join(cells[3:])
    rate = f"{'rate':<8}{report.images_per_second:>{width},.1f} images/s"
    yield rate + (f", about {duration(report.eta_seconds)} left" if report.eta_seconds is not None else "")


def _workers(report: Report) -> Iterator[str]:
    if not report.workers:
        yield styled("workers: none", bold=True)
        return
    yield styled(
        f"{'workers':<9}{'state':<9}{'images/s':>9}{'done':>11}{'failed':>8}   {'wait dec. fwd. write':<21} lease",
        bold=True,
    )
    several = len({worker.host for worker in report.workers}) > 1
    for worker in report.workers:
        share = worker.shares.get("share", {})
        shares = "".join(
            f"{share.get(kind, 0.0) * 100:>4.0f}%" for kind in ("wait", "decode", "forward", "write")
        )
        yield (
            f"{worker.device:<9}{state_of(worker):<9}{float(worker.shares.get('images_per_second', 0.0)):>9,.1f}"
            f"{worker.done:>11,}{worker.failed:>8,}  {shares}  {worker.expires_in_seconds:>4.0f} s"
        )
        yield clip(
            f"  {worker.engine}, pid {worker.pid}" + (f" on {shown(worker.host)}" if several else ""),
            WIDTH,
            2,
        )


def _failures(report: Report) -> Iterator[str]:
    yield styled("failed because of          images  for example", bold=True)
    for line in report.failures:
        yield clip(f"{line.kind:<20}{line.count:>13,}  {shown(line.example)}", WIDTH, 35)


def clip(text: str, width: int, keep: int) -> str:
    """`text` within `width` columns: its first `keep` characters and its end, which tells paths apart."""
    if cell_len(text) <= width:
        return text
    head, tail = text[:keep], text[keep:]
    while tail and cell_len(head) + 1 + cell_len(tail) > width:
        tail = tail[1:]
    return f"{head}…{tail}"


def wrap(text: str, indent: str = "") -> list[str]:
    """`text` in lines; a command between backticks stays on one."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    wrapped = textwrap.wrap(whole, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in wrapped]


def duration(seconds: float) -> str:
    """Two units at most: `4 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0 s"


def size(count: float) -> str:
    """Bytes for people, in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
