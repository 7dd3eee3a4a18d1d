"""A sample a minute of what was done: what the page draws."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featd import clock
from featd.catalog import samples
from featd.catalog.samples import KEPT_MINUTES, Sample
from featd.states import Kind

NOON = datetime(2026, 8, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = int(NOON.timestamp()) // 60


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [NOON]
    monkeypatch.setattr(clock, "utcnow", lambda: now[0])

    def passes(minutes: float) -> None:
        now[0] += timedelta(minutes=minutes)

    return passes


def test_a_sample_has_what_all_workers_did(desk: Any, pass_time: Any) -> None:
    desk.do(samples.take)
    desk.make_done("a", "b")
    desk.find("c", "d", "e")
    lease = desk.lease()
    (first, *_) = desk.claim(lease)
    desk.fail(lease, first, Kind.DECODE_CORRUPT)
    pass_time(1)
    desk.do(samples.take)
    desk.find("a", size=2)  # a new version: done again, and not done less
    pass_time(1)
    desk.do(samples.take)
    assert desk.do(samples.since, MINUTE) == [
        Sample(MINUTE, 0, 0, 0),
        Sample(MINUTE + 1, 2, 1, 2),
        Sample(MINUTE + 2, 2, 1, 3),
    ]
    assert len(desk.do(samples.since, MINUTE + 2)) == 1


def test_a_minute_has_one_sample_and_old_ones_are_forgotten(desk: Any, pass_time: Any) -> None:
    for minutes in (0, 0.2, 1, KEPT_MINUTES):
        pass_time(minutes)
        desk.do(samples.take)
    minutes = [sample.minute for sample in desk.do(samples.since, 0)]
    assert minutes == [MINUTE + 1, MINUTE + 1 + KEPT_MINUTES]
    pass_time(-600)  # the clock was wrong
    desk.do(samples.take)
    minutes = [sample.minute for sample in desk.do(samples.since, 0)]
    assert minutes == [MINUTE + 1, MINUTE + 1 + KEPT_MINUTES - 600]
