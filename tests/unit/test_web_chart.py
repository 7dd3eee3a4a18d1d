"""Bars of throughput from samples."""

from __future__ import annotations

import pytest

from featd.catalog.samples import Sample
from featd.web import chart

NOW = 1_000_000


def at(minutes_ago: int, done: int, failed: int = 0) -> Sample:
    return Sample(NOW - minutes_ago, done, failed, 0)


def test_nothing_is_drawn_before_there_are_two_samples() -> None:
    assert chart.draw([]) is None
    assert chart.draw([at(0, 5)]) is None


def test_a_bar_is_what_was_done_in_its_minute() -> None:
    drawn = chart.draw([at(3, 100), at(2, 160, 0), at(1, 160, 0), at(0, 250, 30)])
    assert drawn is not None
    first, second = drawn.bars
    assert (drawn.images, drawn.most, drawn.begins) == (180, 2.0, "1 h ago")
    assert (first.y, first.done, first.failed) == (50.0, 50.0, 0.0)
    assert (second.y, second.failed, second.done) == (0.0, 25.0, 75.0)
    assert second.told.endswith("UTC: 90 done, 30 failed")
    assert second.x + second.width <= chart.WIDTH
    assert second.x > 0.95 * chart.WIDTH


@pytest.mark.parametrize(
    ("oldest", "span", "bar_minutes"),
    [(59, "hour", 1), (60, "6 hours", 5), (400, "24 hours", 20), (9000, "24 hours", 20)],
)
def test_the_span_holds_all_there_is(oldest: int, span: str, bar_minutes: int) -> None:
    drawn = chart.draw([at(oldest, 0), at(1, 600), at(0, 600)])
    assert drawn is not None
    assert drawn.span == span
    assert drawn.most == 600 / (60 * bar_minutes)


def test_a_catalog_that_was_restored_has_done_nothing_less() -> None:
    drawn = chart.draw([at(3, 100), at(2, 10), at(1, 20)])
    assert drawn is not None
    assert drawn.images == 10
