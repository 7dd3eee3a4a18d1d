"""The line of `featd run`: everything at a glance, in its place, and never wider than the terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from featd.catalog.pause import Pause
from featd.catalog.stats import ShardTotals, WorkerLine
from featd.report.looking import Look
from featd.report.running import Daemon
from featd.report.status import Report
from featd.states import State
from featd_cli import run_screen
from featd_cli.run_screen import HINT, STARTS, STOPS

NOW = datetime(2026, 11, 28, 10, 2, tzinfo=UTC)


def worker(state: str = "working", rate: float = 41.2) -> WorkerLine:
    share = {"wait": 0.0, "decode": 0.06, "forward": 0.92, "write": 0.02}
    shares = {"state": state, "images_per_second": rate, "share": share}
    return WorkerLine("cpu", "here", 2, "onnxruntime", 100, 3, NOW, 59.0, shares)


def report(done: int = 12_345, to_do: int = 6_789, failed: int = 3, **changes: Any) -> Report:
    counts = {
        State.PENDING: to_do, State.CLAIMED: 0, State.DONE: done, State.FAILED: failed, State.GONE: 5,
    }  # fmt: skip
    values: dict[str, Any] = {
        "instance": "0b2d6c3e",
        "catalog": "sqlite:///featd.db",
        "fingerprint": "f" * 64,
        "counts": counts,
        "shards": ShardTotals(3, done, done, 1000),
        "workers": [worker()],
        "failures": [],
        "ingest": {"notes": {}, "last_scan_at": NOW.isoformat(), "scanned_by": {}, "watching": 1},
        "decoders": 4,
        "daemon": Daemon(7, says={"pid": 7, "children": [{"name": "ingest", "state": "finished"}]}),
    }
    return Report(**{**values, **changes})


def line(found: Report | None, width: int = 79, trouble: str | None = None, **how: bool) -> str:
    how = {"drain": False, "stopping": False, "blocks": True, **how}
    return run_screen.line(Look(found, NOW, trouble), width, **how).plain


def test_how_far_how_fast_and_what_limits_it() -> None:
    assert line(report()) == "12,345 done  6,789 to do  3 failed  41.2/s  2 min 45 s left  limited by the net"
    assert line(report(), 119) == (
        "12,345 done  6,789 to do  3 failed  41.2 images/s  2 min 45 s left  limited by the net"
        + " " * (119 - 86 - len(HINT))
        + HINT
    )


def test_a_drain_has_a_bar() -> None:
    assert line(report(), drain=True) == (
        "■■■■■■····   64.5 %  12,348 of 19,137  3 failed  41.2/s  2 min 45 s left"
    )
    assert line(report(done=0, to_do=0, failed=0), 119, drain=True, blocks=False).startswith(
        "------------------------------    0.0 %  0 of 0  0 failed"
    )
    scanning = replace(report(), daemon=Daemon(7, says={"pid": 7, "children": [{"name": "ingest"}]}))
    assert "  scanning" in line(scanning, 119, drain=True)
    begins = replace(scanning, counts=dict.fromkeys(State, 0), workers=[worker("idle")])
    assert "0 of 0  0 failed  waiting for images  scanning" in line(begins, 119, drain=True)
    almost = report(done=999_999, to_do=1, failed=0)
    assert f"{'■' * 29}·   99.9 %    999,999 of 1,000,000  0 failed" in line(almost, 119, drain=True)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"workers": []}, STARTS),
        ({"daemon": Daemon(8, says={"pid": 7})}, STARTS),
        ({"workers": [worker(rate=0.0)]}, "working"),
        ({"workers": [worker("idle", 0.0)]}, "working"),
        ({"workers": [worker("idle", 0.0)], "next_due_seconds": 20.0}, "6,789 images will be retried, the next"),
        ({"workers": [worker("idle", 0.0)], "to_do": 0}, "waiting for new images"),
        ({"pauses": [Pause(None, NOW, "operator@here", "disk")]}, "paused on all hosts since 2026-11-28 10:02 UTC by"),
        ({"pauses": [Pause("another", NOW, "operator@here", "disk")]}, "41.2/s  2 min 45 s left  limited by the net"),
    ],
)  # fmt: skip
def test_where_it_does_not_work_it_says_why(changes: dict[str, Any], end: str) -> None:
    found = report(**changes)
    told = line(found, 119)
    to_do = found.counts[State.PENDING]
    assert told.startswith(f"12,345 done  {to_do:,} to do  3 failed  ")
    assert end.replace("/s", " images/s") in told


def test_an_outage_and_a_stop_are_said() -> None:
    assert line(report(), trouble="catalog x is out of reach: \x1b[31m").startswith(
        "12,345 done  6,789 to do"
    )
    assert "catalog x is out of reach: \\u001b[31m" in line(
        report(), 119, trouble="catalog x is out of reach: \x1b[31m"
    )
    assert line(None) == STARTS
    assert line(None, trouble="catalog x is away") == "catalog x is away"
    assert line(report(), 119, stopping=True) == "12,345 done  6,789 to do  3 failed  stopping"
    assert len(STOPS) < 80


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("width", [*range(1, 60, 7), 79, 99, 119, 200])
def test_it_is_never_wider_than_the_terminal(width: int, drain: bool) -> None:
    large = report(876_543_210, 123_456_789, 1_234_567)
    for found in (large, report(), report(pauses=[Pause(None, NOW, "x" * 99, "漢字" * 99)]), None):
        text = run_screen.line(Look(found, NOW, None), width, drain=drain, stopping=False, blocks=True)
        assert text.cell_len <= width
