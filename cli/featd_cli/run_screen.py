"""The words of `featd run` in a terminal: one line of how far, how fast and what limits it, never wider than asked."""

from __future__ import annotations

from datetime import datetime
from statistics import fmean
from typing import Any

from rich.text import Text

from featd import __version__, clock
from featd.report.looking import Look
from featd.report.running import children_of
from featd.report.status import Report, holds_back, shares_of, state_of
from featd.report.words import duration, percent
from featd.states import State
from featd.worker.shares import KINDS
from featd_cli.console import shown
from featd_cli.status_screen import clip

WIDTH = 80
WIDE = 100
HINT = "Ctrl-C stops"
STOPS = "stopping: writing what is extracted; Ctrl-C again: exit now and repeat it later"
STARTS = "starting: loading the net"
NAMES = {
    "wait": "waiting for images",
    "decode": "limited by decoding",
    "forward": "limited by the net",
    "write": "limited by writing",
}
"""What limits the rate, in a word or two."""
GAP = "  "


def head() -> str:
    """What is said once, before the line."""
    return f"featd {__version__}. Ctrl-C stops it; what is extracted is kept."


def moment(record: dict[str, Any]) -> str:
    """The local time of a record."""
    try:
        return f"{datetime.fromisoformat(str(record.get('time'))).astimezone():%H:%M:%S}"
    except ValueError:
        return f"{clock.utcnow().astimezone():%H:%M:%S}"


def line(look: Look[Report] | None, width: int, *, drain: bool, stopping: bool, blocks: bool) -> Text:
    """The line, at most `width` columns. `blocks`: the terminal can show block characters."""
    report = look.report if look is not None else None
    if look is None or report is None:
        return Text(clip(shown((look and look.trouble) or STARTS), width, width // 2))
    state = _state(look, report, stopping, drain)
    wanted = Text(state, "bold yellow" if report.paused or look.trouble else "")
    # Each with its rank: those of the highest number go first where there is no room.
    parts = _so_far(report, width >= WIDE, blocks) if drain else _counts(report)
    if state:
        parts.append((0, wanted))
    else:
        parts.append(
            (0, Text(f"{report.images_per_second:,.1f}{' images' if width >= WIDE else ''}/s", "bold"))
        )
        if report.eta_seconds is not None:
            parts.append((0, Text(f"{duration(report.eta_seconds)} left")))
        parts.append((3, Text(_limit(report))))
    if drain and _scans(report):
        parts.append((1, Text("scanning")))
    return _fitted([(rank, text) for rank, text in parts if text], width, "" if stopping else HINT)


def _fitted(parts: list[tuple[int, Text]], width: int, hint: str) -> Text:
    """As many parts as there is room for, and the hint at the right end where there is room for it, too."""
    text = Text(GAP).join(part for _, part in parts)
    for least in (3, 2, 1):
        if text.cell_len > width:
            text = Text(GAP).join(part for rank, part in parts if rank < least)
    text.truncate(width, overflow="ellipsis")
    left = width - text.cell_len - len(hint)
    return Text.assemble(text, " " * left, (hint, "bright_black")) if hint and left >= len(GAP) else text


def _counts(report: Report) -> list[tuple[int, Text]]:
    return [
        (0, Text(f"{report.counts[State.DONE]:,} done")),
        (0, Text(f"{report.open:,} to do")),
        (0, _failed(report)),
    ]


def _so_far(report: Report, wide: bool, blocks: bool) -> list[tuple[int, Text]]:
    """How far a drain is."""
    there = report.total - report.counts[State.GONE]
    processed = there - report.open
    length = 30 if wide else 10
    bar = length * processed // there if there else 0
    full, empty = ("■", "·") if blocks else ("#", "-")
    return [
        (1, Text(full * bar, "green") + Text(empty * (length - bar))),
        (0, Text(f"{percent(report):>7}")),
        (2, Text(f"{processed:>{len(f'{there:,}')},} of {there:,}")),
        (0, _failed(report)),
    ]


def _failed(report: Report) -> Text:
    failed = report.counts[State.FAILED]
    return Text(f"{failed:,} failed", "red" if failed else "")


def _state(look: Look[Report], report: Report, stopping: bool, drain: bool) -> str:
    """What is to be known in place of a rate; empty while one is measured."""
    if look.trouble is not None:
        return shown(look.trouble)
    if stopping:
        return "stopping"
    if report.paused is not None:
        return shown(str(report.paused))
    sentence = holds_back(report)
    if report.daemon.says.get("pid") != report.daemon.pid:
        return STARTS  # what is known of workers is of an earlier run
    if not report.workers:
        return shown(sentence) if report.open and sentence.startswith("no worker can start") else STARTS
    if any(state_of(worker) == "working" for worker in report.workers):
        return "" if report.images_per_second else "working"
    if not report.open:
        if not drain:
            return "waiting for new images"
        return "waiting for images" if _scans(report) else "finishing"
    if report.room.get("lacking") or report.waiting_roots or report.next_due_seconds:
        return shown(sentence)
    return "working"


def _limit(report: Report) -> str:
    """`limited by the net`."""
    working = [worker for worker in report.workers if state_of(worker) == "working"]
    shares = {kind: fmean(shares_of(worker)[kind] for worker in working) for kind in KINDS}
    kind = max(KINDS, key=shares.__getitem__)
    return NAMES[kind] if shares[kind] else ""


def _scans(report: Report) -> bool:
    """Whether the scan of a drain is not over."""
    return any(
        child.get("name") == "ingest" and child.get("state") != "finished"
        for child in children_of(report.daemon.says)
    )
