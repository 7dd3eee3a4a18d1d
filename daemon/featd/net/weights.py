"""Matches the arrays of a .caffemodel to the layers of a net, by Caffe's rules (Net::CopyTrainedLayersFrom)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from featd.errors import ModelError
from featd.net import fillers, schema
from featd.net.caffemodel import StoredBlob, StoredLayer
from featd.net.graph import Layer, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An array as a view on the file's bytes, and the shape that the layer gives it."""

    stored: StoredBlob
    shape: Shape

    def array(self) -> npt.NDArray[np.float32]:
        """The numbers, float32, aligned, in the layer's shape. Usually a copy: do not keep more of them than needed."""
        return self.stored.array(self.shape)


@dataclass(frozen=True, slots=True)
class Match:
    """The result of `match`."""

    weights: dict[str, tuple[Weight, ...]]
    """By the layers' keys."""
    missing: tuple[str, ...]
    """Keys of layers that need weights and found none."""
    others: dict[str, StoredLayer]
    """What the file holds for layers of types that featd does not know, by their keys."""
    filled: tuple[str, ...]
    """Keys of layers that the file holds nothing for and that Caffe fills: see featd.net.fillers."""
    unused: tuple[str, ...]
    """Names of layers that only the file has, or that no wanted blob needs."""


_Key: TypeAlias = tuple[str, int]
_SHARED: Final = -1
_PERMISSIVE: Final = schema.ENUMS["ParamSpec.DimCheckMode"]["PERMISSIVE"]


def match(
    wanted: Sequence[Layer],
    shapes: Mapping[str, list[Shape] | None],
    stored: Sequence[StoredLayer],
    source: str,
    layers: Sequence[Layer] | None = None,
) -> Match:
    """Give each wanted layer its arrays. ModelError where number or shape differ or numbers are not finite; missing
    ones are listed. `shapes`: layer key -> those of its arrays; None: a type that featd does not know takes any.

    Where layers have one name, Caffe gives the file's arrays to the first of them (of an HDF5 file: to the last).
    Arrays with the same `param { name }` are one array: the last one read wins for all. `layers`: all of the net's,
    where `wanted` are not: they may own a name or a shared array too.
    """
    owners: dict[str, Layer] = {}
    last = any(layer.hdf5 for layer in stored)
    for owner in wanted if layers is None else layers:
        if last or owner.name not in owners:
            owners[owner.name] = owner
    by_key = {one.key: one for one in wanted}
    values: dict[_Key, StoredBlob] = {}
    others: dict[str, StoredLayer] = {}
    unused = []
    for layer in stored:
        if not any(layer.blobs):
            continue
        of = owners.get(layer.name)
        target = None if of is None else by_key.get(of.key)
        if target is None:
            unused.append(layer.name)
            if of is not None:
                keyed = ((_key(of, at), blob) for at, blob in enumerate(layer.blobs) if blob is not None)
                values |= {key: blob for key, blob in keyed if key[1] == _SHARED}
        elif (needed := shapes[target.key]) is None:
            others[target.key] = layer
        else:
            _check(target, needed, layer, source)
            values |= {_key(target, at): blob for at, blob in enumerate(layer.blobs) if blob is not None}
    held = {owners[layer.name].key for layer in stored if layer.name in owners}
    sharing: dict[_Key, str] = {}
    for one in wanted if layers is None else layers:
        for at in range(len(one.param.param)):
            sharing.setdefault(_key(one, at), one.key)
    weights, missing, filled = {}, [], []
    for one in wanted:
        if not (needed := shapes[one.key]):
            continue
        for at, shape in enumerate(needed):
            key = _key(one, at)
            if key not in values and one.key not in held and sharing.get(key, one.key) == one.key:
                blob = fillers.filled(one, at, shape)
                if blob is not None:
                    values[key] = blob
                    filled.append(one.key)
        found = [values.get(_key(one, at)) for at in range(len(needed))]
        blobs = [blob for blob in found if blob is not None]
        if len(blobs) < len(found):
            missing.append(one.key)
            continue
        weights[one.key] = tuple(
            _weight(one, at, blob, shape, source)
            for at, (blob, shape) in enumerate(zip(blobs, needed, strict=True))
        )
    return Match(weights, tuple(missing), others, tuple(dict.fromkeys(filled)), tuple(unused))


def _weight(layer: Layer, at: int, blob: StoredBlob, shape: Shape, source: str) -> Weight:
    """ModelError where an array that another layer owns does not fit this one (Net::AppendParam)."""
    params = layer.param.param
    permissive = at < len(params) and params[at].share_mode == _PERMISSIVE
    if blob.data.size != math.prod(shape) or not (permissive or blob.fits(shape)):
        raise ModelError(
            f"{source}: {layer} shares an array of another shape: {_text(blob.shape)}, not {_text(shape)}"
        )
    return Weight(blob, shape)


def _key(layer: Layer, at: int) -> _Key:
    params = layer.param.param
    # Old definitions give BatchNorm three `param` blocks for its learning rate; Caffe drops them with their names.
    dropped = layer.type == "BatchNorm" and len(params) == 3
    shared = params[at].name if at < len(params) and not dropped else ""
    return (f"shared {shared}", _SHARED) if shared else (layer.key, at)


def _check(layer: Layer, shapes: list[Shape], stored: StoredLayer, source: str) -> None:
    # An HDF5 file has a shared array only once, at its owner.
    if layer.type == "BatchNorm" and len(stored.blobs) == 5:
        raise ModelError(
            f"{source}: {layer}: the file holds 5 arrays for it: a BatchNorm of NVIDIA's Caffe, which scales and "
            "shifts too: write a BatchNorm and a Scale layer, and give the last two arrays to the Scale"
        )
    if len(stored.blobs) != len(shapes) and not (stored.hdf5 and len(stored.blobs) < len(shapes)):
        raise ModelError(
            f"{source}: {layer} needs {len(shapes)} weight arrays, the file holds {len(stored.blobs)} for it: "
            "these weights belong to another net"
        )
    for at, (blob, shape) in enumerate(zip(stored.blobs, shapes, strict=False)):
        if blob is None:
            continue
        if not blob.fits(shape):
            raise ModelError(
                f"{source}: {layer}: weight array {at} has shape {_text(blob.shape)}, the net needs {_text(shape)}: "
                "these weights belong to another net"
            )
        if not np.isfinite(blob.data).all():
            raise ModelError(
                f"{source}: {layer}: weight array {at} holds numbers that are not finite: "
                "copy or download the file again"
            )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
