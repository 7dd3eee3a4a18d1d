"""Infers the shape of every blob and of every weight array, for some batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from featd.errors import ModelError
from featd.net.graph import INPUT, Layer, Shape, Step, shares
from featd.net.layers.registry import MANY
from featd.net.layers.table import TYPES

MAX_COUNT: Final = 2**28
"""Most numbers in a blob of one image: 1 GiB. The widest published nets have some 64 million."""
MAX_TOTAL: Final = 2**30
"""Most numbers in all blobs of one image together."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What inference found. A blob is None where it comes from a layer that featd does not know."""

    blobs: dict[str, Shape | None]
    params: dict[str, list[Shape] | None]
    """Layer key -> shapes of its weight arrays, in Caffe's order. None: unknown."""
    problems: dict[str, str]
    """Layer key -> what is wrong with it (`infer` with tolerant=True only)."""


def infer(steps: Iterable[Step], batch: int, *, tolerant: bool = False) -> Shapes:
    """Shapes with the first axis of every input set to `batch`.

    ModelError where a known layer's settings do not fit its bottoms; with `tolerant`, it goes into `problems`.
    """
    found = Shapes({}, {}, {})
    total = 0
    for step in steps:
        layer = step.layer
        bottoms = [found.blobs[bottom] for bottom in layer.bottoms]
        known = [bottom for bottom in bottoms if bottom is not None]
        tops: list[Shape] | None = None
        params: list[Shape] | None = None
        if layer.type in TYPES and len(known) == len(bottoms):
            try:
                tops, params = _one(layer, known, batch)
                # What works in place, or shares its bottom's memory, takes no more.
                own = () if shares(layer) else zip(layer.tops, tops, strict=True)
                total += sum(math.prod(top) for name, top in own if name not in layer.bottoms)
                if total > MAX_TOTAL * batch:
                    raise ModelError(f"{layer}: with it the net's blobs hold more than {MAX_TOTAL:,} numbers")
            except ModelError as error:
                if not tolerant:
                    raise
                found.problems[layer.key] = str(error)
        for at, top in enumerate(layer.tops):
            found.blobs[top] = tops[at] if tops is not None else None
        found.params[layer.key] = params
    return found


def _one(layer: Layer, bottoms: list[Shape], batch: int) -> tuple[list[Shape], list[Shape]]:
    kind = TYPES[layer.type]
    for what, names, (fewest, most) in (
        ("bottoms", layer.bottoms, kind.bottoms),
        ("tops", layer.tops, kind.tops),
    ):
        if not fewest <= len(names) <= most:
            takes = (
                str(fewest)
                if fewest == most
                else f"{fewest} to {most}"
                if most < MANY
                else f"at least {fewest}"
            )
            raise ModelError(f"{layer}: has {len(names)} {what}, the type takes {takes}")
    if not kind.in_place and set(layer.bottoms) & set(layer.tops):
        raise ModelError(
            f"{layer}: this type cannot work in place: give its top another name than its bottom"
        )
    tops = kind.shapes(layer, bottoms)
    if layer.type == INPUT:
        tops = [(batch, *top[1:]) for top in tops]
    if len(tops) != len(layer.tops):
        raise ModelError(f"{layer}: makes {len(tops)} blobs, its definition names {len(layer.tops)} tops")
    if any(dim < 1 for top in tops for dim in top):
        raise ModelError(f"{layer}: would make an empty blob")
    if any(math.prod(top) > MAX_COUNT * batch for top in tops):
        raise ModelError(f"{layer}: would make a blob of more than {MAX_COUNT:,} numbers for one image")
    return tops, kind.params(layer, bottoms)
