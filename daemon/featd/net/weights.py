"""Matches the arrays of a .caffemodel to the layers of a net, by Caffe's rules (Net::CopyTrainedLayersFrom)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from featd.errors import ModelError
from featd.net.caffemodel import StoredBlob, StoredLayer
from featd.net.graph import Layer, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An array where the file's bytes lie, and the shape the layer gives it."""

    stored: StoredBlob
    shape: Shape

    def array(self) -> npt.NDArray[np.float32]:
        """The numbers, float32, aligned, in the layer's shape. Mostly a copy: do not keep what you do not need."""
        return self.stored.array(self.shape)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer and the arrays it needs; None: a type featd does not know, so any will do."""

    layer: Layer
    shapes: list[Shape] | None


@dataclass(frozen=True, slots=True)
class Match:
    """What came of matching."""

    weights: dict[str, tuple[Weight, ...]]
    missing: tuple[str, ...]
    """Names of layers that need weights and found none."""
    unused: tuple[str, ...]
    """Names of layers that only the file has, or that no wanted blob needs."""


_Key: TypeAlias = tuple[str, int]


def match(wanted: Sequence[Wanted], stored: Sequence[StoredLayer], source: str) -> Match:
    """Give each wanted layer its arrays. ModelError where number or shape differ; missing ones are listed.

    Arrays with the same `param { name }` are one array in Caffe: the last one read wins for all.
    """
    by_name: dict[str, Wanted] = {}
    for one in wanted:
        # Caffe gives a doubled name's arrays to the first layer.
        if one.layer.name not in by_name:
            by_name[one.layer.name] = one
    values: dict[_Key, StoredBlob] = {}
    unused = []
    for layer in stored:
        if not layer.blobs:
            continue
        target = by_name.get(layer.name)
        if target is None:
            unused.append(layer.name)
        elif target.shapes is not None:
            _check(target.layer, target.shapes, layer, source)
            for at, blob in enumerate(layer.blobs):
                values[_key(target.layer, at)] = blob
    weights, missing = {}, []
    for one in wanted:
        if not one.shapes:
            continue
        blobs = [values.get(_key(one.layer, at)) for at in range(len(one.shapes))]
        found = [blob for blob in blobs if blob is not None]
        if len(found) < len(blobs):
            missing.append(one.layer.name)
            continue
        for blob, shape in zip(found, one.shapes, strict=True):
            if blob.data.size != math.prod(shape):
                raise ModelError(
                    f"{source}: {one.layer} shares an array of another size: {blob.shape}, not {shape}"
                )
        weights[one.layer.name] = tuple(
            Weight(blob, shape) for blob, shape in zip(found, one.shapes, strict=True)
        )
    return Match(weights, tuple(missing), tuple(unused))


def _key(layer: Layer, at: int) -> _Key:
    params = layer.param.param
    # Old definitions give BatchNorm three `param` blocks for its learning rate; Caffe drops them, names and all.
    dropped = layer.type == "BatchNorm" and len(params) == 3
    shared = params[at].name if at < len(params) and not dropped else ""
    return (f"shared {shared}", -1) if shared else (layer.name, at)


def _check(layer: Layer, shapes: list[Shape], stored: StoredLayer, source: str) -> None:
    if len(stored.blobs) != len(shapes):
        raise ModelError(
            f"{source}: {layer} needs {len(shapes)} weight arrays, the file holds {len(stored.blobs)} for it: "
            "these weights belong to another net"
        )
    for at, (blob, shape) in enumerate(zip(stored.blobs, shapes, strict=True)):
        if not blob.fits(shape):
            raise ModelError(
                f"{source}: {layer}: weight array {at} has shape {_text(blob.shape)}, the net needs {_text(shape)}: "
                "these weights belong to another net"
            )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
