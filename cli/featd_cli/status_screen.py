"""`featd status` for people: never wider or higher than asked for, whatever the paths."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from featd import clock
from featd.catalog.stats import WorkerLine
from featd.report import words
from featd.report.status import Report, holds_back, rate_of, shares_of, state_of
from featd.states import State
from featd_cli.colours import STATES
from featd_cli.console import shown

WIDTH = 80
MAX_WIDTH = 120
HIGH = 24
"""A terminal with so many lines has room for empty lines."""
BESIDE_BAR = 37
BESIDE_TIME = 51
LEAST_WRAPPED = 20
"""A terminal that is narrower breaks the lines itself."""
_COMMAND = re.compile(r"`[^`]*`")
STATE_COLOURS = {"working": "green", "dead": "red", "stopping": "yellow"}
TIMES = {
    "wait": ("░", ".", "bright_black"),
    "decode": ("▒", "d", "yellow"),
    "forward": ("█", "f", "green"),
    "write": ("▓", "w", "magenta"),
}
"""How a worker spends its time: a block, a character, and a colour for each kind."""
WORDS = {"wait": "idle", "forward": "net"}  # there was nothing to claim


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


def lines(report: Report, *, blocks: bool, width: int = WIDTH, detail: Detail = LEVELS[0]) -> list[Text]:
    """The screen, line by line. `blocks`: the terminal can show block characters."""
    found = [*_faults(report, width), *_head(report, width, blocks, detail)]
    for part in (
        _images(report, width, blocks),
        _workers(report, width, blocks, detail),
        _failures(report, width, detail),
        _verdict(report, width, detail),
    ):
        some = list(part)
        found += [Text(), *some] if some and detail.gaps else some
    return found


def fitted(report: Report, *, blocks: bool, width: int, height: int) -> list[Text]:
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
    least = (
        _faults(report, width),
        _pauses(report, width, blocks),
        _images(report, width, blocks),
        _verdict(report, width, LEVELS[-1]),
    )
    return [line for part in least for line in part][:height]


def show(screen: Iterable[Text]) -> None:
    """Print these lines, in colour only on a terminal."""
    Console().print(*screen, sep="\n", soft_wrap=True)


def _head(report: Report, width: int, blocks: bool, detail: Detail) -> Iterator[Text]:
    yield _running(report, blocks)
    yield from _pauses(report, width, blocks)
    yield Text(clip(f"catalog  {shown(report.catalog)}", width, 9), "bold")
    if not detail.whole_head:
        return
    fingerprint = report.fingerprint[:12] if report.fingerprint else "none yet"
    yield Text(f"instance {report.instance[:8]} (catalog and store)   fingerprint {fingerprint} (model)")
    by = sorted(set(report.ingest["scanned_by"].values()))
    elsewhere = f" by {shown(', '.join(by))}" if not set(by) <= report.daemon.names else ""
    watched = f"{report.ingest['watching']} watched; last scan: {words.last_scan(report)}{elsewhere}"
    yield Text(clip(f"roots    {report.roots}, {watched}", width, 30))
    if files := words.files(report):
        yield Text(clip(shown(f"files    {files}"), width, 9))
    yield from map(Text, wrap(f"shards   {words.shards(report)}", width, indent=" " * 9))


def _running(report: Report, blocks: bool) -> Text:
    """Whether featd runs on this host."""
    runs, told = words.running(report)
    mark, plain, colour = {
        True: ("●", "*", "bold green"),
        False: ("○", "-", "bold yellow"),
        None: ("?", "?", "bold yellow"),
    }[runs]
    if runs and words.tone(report) == "bad":
        told, colour = told + words.NOTHING_DONE, "bold red"
    return Text(f"{mark if blocks else plain} {told}", colour)


def _pauses(report: Report, width: int, blocks: bool) -> Iterator[Text]:
    """What is paused, since when, why, and how it goes on."""
    for told in words.pauses(report):
        mark = "‖" if blocks else "="
        yield from (Text(line, "bold yellow") for line in wrap(shown(f"{mark} {told}"), width, indent="  "))


def _images(report: Report, width: int, blocks: bool) -> Iterator[Text]:
    there = report.total - report.counts[State.GONE]
    bad_share = report.counts[State.FAILED] / there if there else 0.0
    bar = max(10, width - BESIDE_BAR)
    processed = int(bar * (there - report.open) / there) if there else 0  # full only at the end
    failed = min(bar, max(round(bar * bad_share), bool(bad_share)))
    filled = max(0, processed - failed)
    full, bad, empty = ("■", "×", "·") if blocks else ("#", "x", "-")
    yield Text.assemble(
        (full * filled, "green"),
        (bad * failed, "red"),
        f"{empty * (bar - filled - failed)} {words.percent(report):>7} of {there:,} processed",
    )
    digits = max(len(f"{report.total:,}"), 6)
    cells = [
        Text(f"{state:<8}{count:>{digits},}", STATES.get(state, "") if count else "")
        for state, count in report.counts.items()
    ]
    cells.append(Text(f"{'total':<8}{report.total:>{digits},}"))
    yield Text("   ").join(cells[:3])
    yield Text("   ").join(cells[3:])
    if report.workers:
        rate = f"{'rate':<8}{report.images_per_second:>{digits},.1f} images/s now"
        left = f", about {words.duration(report.eta_seconds)} left" if report.eta_seconds is not None else ""
        yield Text(rate + left)


def _workers(report: Report, width: int, blocks: bool, detail: Detail) -> Iterator[Text]:
    if not report.workers:
        yield Text("workers: none", "bold")
        return
    shown_workers = report.workers[: detail.workers]
    if not shown_workers:
        at_work = sum(state_of(worker) == "working" for worker in report.workers)
        yield Text(f"workers: {len(report.workers)}, {at_work} working", "bold")
        return
    wide = max(9, *(len(worker.device) + 1 for worker in shown_workers))
    room = max(4, min(40, width - BESIDE_TIME - wide + 9))
    head = f"{'workers':<{wide}}{'state':<9}{'images/s':>8}{'done':>13}{'failed':>9}  time spent"
    yield Text(head, "bold")
    several = len({worker.host for worker in report.workers}) > 1
    for worker in shown_workers:
        state = state_of(worker)
        yield Text.assemble(
            f"{worker.device:<{wide}}",
            (f"{state:<9}", STATE_COLOURS.get(state, "")),
            f"{rate_of(worker):>8,.1f}{worker.done:>13,}{worker.failed:>9,}  ",
            _time_bar(worker, room, blocks),
        )
        if detail.two_lines:
            yield _worker_detail(worker, several, width, blocks)
    if left := len(report.workers) - len(shown_workers):
        yield Text(f"... and {left} more")


def _time_bar(worker: WorkerLine, room: int, blocks: bool) -> Text:
    """A bar of `room` characters, divided by how a worker spends its time."""
    bar, sofar, total = Text(), 0.0, sum(shares_of(worker).values())
    for kind, share in shares_of(worker).items():
        block, letter, colour = TIMES[kind]
        sofar += share
        upto = round(room * sofar / total) if total else 0
        bar.append((block if blocks else letter) * (upto - len(bar)), colour)
    bar.pad_right(room - len(bar))
    return bar


def _worker_detail(worker: WorkerLine, several: bool, width: int, blocks: bool) -> Text:
    """The second line of a worker: who it is, and the key to its bar."""
    age = words.duration((clock.utcnow() - worker.started_at).total_seconds())
    who = f"  {shown(worker.host) if several else worker.engine}, pid {worker.pid}, up {age}"
    shares = shares_of(worker)
    if not any(shares.values()):
        return Text(clip(who, width, 2))
    key = Text("  ").join(
        Text.assemble(
            (block if blocks else letter, colour), f"{WORDS.get(kind, kind)} {shares[kind] * 100:.0f}%"
        )
        for kind, (block, letter, colour) in TIMES.items()
    )
    room = width - len(key) - 2
    line = Text(clip(who, room, 2))
    line.pad_right(room - line.cell_len)
    return Text.assemble(line, "  ", key)


def _failures(report: Report, width: int, detail: Detail) -> Iterator[Text]:
    some = report.failures[: detail.failures]
    if not some:
        return
    yield Text("kind of failure            images  example", "bold")
    for line in some:
        yield Text(clip(f"{line.kind:<20}{line.count:>13,}  {shown(line.example)}", width, 35))
    if rest := report.failures[len(some) :]:
        yield Text(f"{f'{len(rest)} more kinds':<20}{sum(line.count for line in rest):>13,}")


def _faults(report: Report, width: int) -> Iterator[Text]:
    for fault in report.faults:
        for line in wrap(shown(fault), width, indent="  "):
            yield Text(line, "red")


def _verdict(report: Report, width: int, detail: Detail) -> Iterator[Text]:
    warnings = [*report.warnings, *report.notices]
    some = warnings[: detail.warnings]
    for warning in some:
        for line in wrap(shown(f"warning: {warning}"), width, indent="  "):
            yield Text(line, "yellow")
    if left := len(warnings) - len(some):
        yield Text(f"{left} more {'warning' if left == 1 else 'warnings'}", "yellow")
    sentence = holds_back(report)
    yield from map(Text, wrap(shown(words.whole(sentence)), width))


def clip(text: str, width: int, keep: int) -> str:
    """`text` cut to `width` columns: its first `keep` characters, and its end, which distinguishes paths."""
    if cell_len(text) <= width:
        return text
    head, tail = text[:keep], text[keep:]
    while tail and cell_len(head) + 1 + cell_len(tail) > width:
        tail = tail[1:]
    return f"{head}…{tail}"


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in lines of `width` columns, or LEAST_WRAPPED; a command between backticks is not broken."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    wrapped = textwrap.wrap(
        whole, max(width, LEAST_WRAPPED), subsequent_indent=indent, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in wrapped]
