"""Where a worker's time goes, and that an idle one does not go on telling what it was."""

from __future__ import annotations

import pytest

from featd import clock
from featd.worker.shares import IDLE_SECONDS, WINDOW_SECONDS, Shares


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)


def test_the_rate_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    shares = Shares()
    for _ in range(10):
        time.now += 1.0
        shares.add("forward", 0.75)
        shares.add("decode", 0.25)
        shares.count(8)
    told = shares.report("working")
    assert told["images_per_second"] == 8.0
    assert told["share"] == {"wait": 0.0, "decode": 0.25, "forward": 0.75, "write": 0.0}
    time.now += WINDOW_SECONDS + 1.0
    assert shares.report("working")["images_per_second"] == 0.0


def test_an_idle_worker_has_no_rate_soon_and_one_that_works_slowly_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = Time(monkeypatch)
    shares = Shares()
    time.now += 10.0
    shares.count(100)
    assert shares.report("idle")["images_per_second"] == 10.0  # between two arrivals
    time.now += IDLE_SECONDS + 0.5
    assert shares.report("idle")["images_per_second"] == 0.0
    assert shares.report("working")["images_per_second"] > 0.0  # a batch may take long
