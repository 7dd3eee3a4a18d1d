"""What a measurement found, and what follows from it: the settings to use, and what limits. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from featd.sizing import Sizes

NEARLY = 0.95
"""The smallest batch that is as fast as this part of the fastest is taken: it needs less memory, and an image that
arrives waits less."""
LEAST_PASS_SECONDS = 0.01
"""A pass takes at least so long where it can, so that the work around each counts little."""
WORTH = 0.9
"""Fewer workers are taken where they are as fast as this part of the fastest: each more has a net of its own in
memory, which a start has to load."""
SPARE = 1.25
"""Decoders can do so much more than the net, whose rate they must reach with pictures of any size."""
AMPLE = 1.2
"""What could do so much more images per second than featd as a whole does not limit it."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Pictures per second, decoded and prepared for the net by so many processes at once."""

    decoders: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Images per second of all devices together, each with its own net."""

    devices: tuple[str, ...]
    threads: int
    batch: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Disk:
    """Of files read from the disk of the pictures, or of vectors written to that of the store."""

    images_per_second: float
    megabytes_per_second: float


@dataclass(frozen=True, slots=True)
class Whole:
    """Decoders and nets at work together. `share`: of the workers' time, by what they did or waited for."""

    sizes: Sizes
    images_per_second: float
    share: dict[str, float]


@dataclass(slots=True)
class Figures:
    """One measurement."""

    fingerprint: str = ""
    engine: str = ""
    cores: int = 1
    pictures: int = 0
    unreadable: int = 0
    decoding: list[Decoding] = field(default_factory=list)
    reading: Disk | None = None
    writing: Disk | None = None
    forward: list[Forward] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)

    @property
    def best(self) -> Whole:
        """The settings to use."""
        fastest = max(one.images_per_second for one in self.whole)
        fast = [one for one in self.whole if one.images_per_second >= WORTH * fastest]
        return min(fast, key=lambda one: (len(one.sizes.devices), -one.images_per_second))


def candidates(figures: Figures, most: int = 2) -> list[Sizes]:
    """The settings that are worth a trial of the whole: for the devices and threads that were fastest, the best batch
    and enough decoders."""
    found = []
    for devices, threads in {(one.devices, one.threads): None for one in figures.forward}:
        rows = [one for one in figures.forward if (one.devices, one.threads) == (devices, threads)]
        chosen = best_batch(rows)
        per_worker = chosen.images_per_second / len(devices)
        sizes = Sizes(devices, threads, chosen.batch, _decoders(figures, per_worker, len(devices)))
        found.append((chosen.images_per_second, sizes))
    found.sort(key=lambda one: -one[0])
    return [sizes for _, sizes in found[:most]]


def best_batch(rows: Sequence[Forward]) -> Forward:
    """Of the rows of the same devices and threads: the smallest batch that is nearly as fast as the fastest."""
    long = [one for one in rows if one.batch * len(one.devices) / one.images_per_second >= LEAST_PASS_SECONDS]
    rows = long or [max(rows, key=lambda one: one.batch)]
    fastest = max(one.images_per_second for one in rows)
    return min((one for one in rows if one.images_per_second >= NEARLY * fastest), key=lambda one: one.batch)


def _decoders(figures: Figures, images_per_second: float, workers: int) -> int:
    """Decoders of one worker whose net makes `images_per_second`; no more than its part of the cores."""
    one = figures.decoding[0].images_per_second / figures.decoding[0].decoders
    return max(1, min(math.ceil(SPARE * images_per_second / one), figures.cores // workers))


def limit(figures: Figures) -> tuple[str, str]:
    """What limits (`reading`, `decoding`, `forward`, `writing`), and a sentence about it."""
    best = figures.best
    rate = best.images_per_second
    disks = (("reading", figures.reading), ("writing", figures.writing))
    slow = [(name, disk.images_per_second) for name, disk in disks if disk is not None]
    name, disk_rate = min(slow, key=lambda one: one[1], default=("", math.inf))
    if disk_rate < AMPLE * rate:
        what = "the disk of the pictures" if name == "reading" else "the disk of the store"
        return name, (
            f"{name} limits: {what} gives {disk_rate:,.0f} images/s, and the rest could do {rate:,.0f}:"
            " a faster disk makes featd faster"
        )
    if best.share.get("decode", 0.0) > best.share.get("forward", 0.0):
        way_out = (
            "more or faster cores make featd faster"
            if best.sizes.decoders * len(best.sizes.devices) >= figures.cores
            else "more decoders make featd faster"
        )
        return "decoding", (
            f"decoding limits: the net waits for pictures {best.share['decode']:.0%} of the time: {way_out},"
            " and so do smaller pictures"
        )
    share = best.share.get("forward", 0.0)
    on_cpu = "cpu" in best.sizes.devices
    way_out = "more or faster cores, or a GPU, make" if on_cpu else "more devices make"
    return (
        "forward",
        f"the net limits ({share:.0%} of the time): {way_out} featd faster, more decoders do not",
    )
