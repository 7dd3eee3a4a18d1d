"""Throughput as bars: from samples, one a minute, to rectangles in a box of 1000 by 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from featd.catalog.samples import Sample

WIDTH, HEIGHT = 1000.0, 100.0
GAP = 0.25
"""Of a bar's place."""
SPANS = ((60, 1), (6 * 60, 5), (24 * 60, 20))
"""Minutes that are shown, and minutes to a bar: the first that holds all there is, else the last."""
LONGEST = SPANS[-1][0]


@dataclass(frozen=True, slots=True)
class Bar:
    """From the top: what failed, then what was done. `told`: in words."""

    x: float
    width: float
    y: float
    failed: float
    done: float
    told: str


@dataclass(frozen=True, slots=True)
class Chart:
    """`most`: images per second at the full height. `begins`: `1 h ago`. `images`: all that the bars stand for."""

    bars: Sequence[Bar]
    most: float
    begins: str
    span: str
    images: int


def draw(samples: Sequence[Sample]) -> Chart | None:
    """The bars up to the last sample, which is of this moment; None where nothing was measured yet."""
    if len(samples) < 2:
        return None
    last = samples[-1].minute
    minutes, width = next((span for span in SPANS if last - samples[0].minute < span[0]), SPANS[-1])
    count = minutes // width
    first = last - minutes + 1
    done, failed = [0] * count, [0] * count
    for before, sample in pairwise(samples):
        place = (sample.minute - first) // width
        if place >= 0:
            # A catalog that was restored has done less than before.
            done[place] += max(0, sample.done - before.done)
            failed[place] += max(0, sample.failed - before.failed)
    most = max(one + other for one, other in zip(done, failed, strict=True))
    scale = HEIGHT / most if most else 0.0
    step = WIDTH / count
    bars = []
    for place in range(count):
        if not done[place] + failed[place]:
            continue
        good, bad = done[place] * scale, failed[place] * scale
        begins = datetime.fromtimestamp((first + place * width) * 60, UTC)
        told = f"{begins:%H:%M} UTC: {done[place]:,} done"
        told += f", {failed[place]:,} failed" if failed[place] else ""
        bars.append(
            Bar(
                round(place * step + step * GAP / 2, 2),
                round(step * (1 - GAP), 2),
                round(HEIGHT - good - bad, 2),
                round(bad, 2),
                round(good, 2),
                told,
            )
        )
    hours = minutes // 60
    span = "hour" if hours == 1 else f"{hours} hours"
    return Chart(bars, most / (60 * width), f"{hours} h ago", span, sum(done) + sum(failed))
