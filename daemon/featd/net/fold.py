"""Folds BatchNorm, Scale and Bias into the convolution or inner product before them, and runs of them into one.

Computed in double precision, and only where no wanted blob and no other layer reads the blobs in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from featd.net.graph import Step
from featd.net.layers.affine import Affine, of_layer, then
from featd.net.layers.registry import Weights
from featd.net.net import Net

Array = npt.NDArray[np.float32]
_FOLDERS: Final = frozenset({"Convolution", "Deconvolution", "InnerProduct"})


@dataclass(slots=True)
class Folded:
    """What lowering does not do layer by layer. Keys are indexes into `Net.layers`."""

    absorbed: set[int] = field(default_factory=set)
    absorbing: dict[int, Affine] = field(default_factory=dict)
    """What layers absorb: see `absorbed`."""
    affine: dict[int, Affine] = field(default_factory=dict)
    """Runs of BatchNorm, Scale and Bias, by their first layer."""


def fold(net: Net) -> Folded:
    """Plan the folding of a net whose layers are all lowered."""
    found = Folded()
    readers: dict[int, list[int]] = {}
    for at, step in enumerate(net.layers):
        for value in step.reads:
            readers.setdefault(value, []).append(at)
    for at, step in enumerate(net.layers):
        if at in found.absorbed:
            continue
        absorbs = _can_absorb(net, step)
        affine = None if absorbs else _affine(net, step)
        if not absorbs and affine is None:
            continue
        run, tail = _run(net, at, affine, readers)
        if run is None:
            continue
        if absorbs:
            # Thrown away, to be made again one layer at a time: kept, they would take as much memory as all weights.
            if absorbed(net, step, run) is None:
                continue
            found.absorbing[at] = run
        else:
            found.affine[at] = run
        found.absorbed.update(tail)
    return found


def _can_absorb(net: Net, step: Step) -> bool:
    """Whether the layer's weights can absorb a scale and a shift of its channels."""
    if step.layer.type not in _FOLDERS or len(step.writes) != 1:
        return False
    top = net.shapes[step.layer.tops[0]]
    if top is None:
        return False
    if step.layer.type == "InnerProduct":
        return len(top) == 2
    return bool(step.layer.param.convolution_param.axis % len(top) == 1)


def _affine(net: Net, step: Step) -> Affine | None:
    """What a layer does per channel, if that is all it does."""
    if any(value in net.constants for value in step.reads):
        return None
    weights = [weight.array() for weight in net.weights.get(step.layer.key, ())]
    shapes = [net.shapes[bottom] for bottom in step.layer.bottoms]
    return of_layer(step.layer, [shape for shape in shapes if shape is not None], weights)


def _run(
    net: Net, at: int, affine: Affine | None, readers: dict[int, list[int]]
) -> tuple[Affine | None, list[int]]:
    """The affine layers that follow `at` and that nothing else reads, as one, and their indexes. None: there is no
    affine layer, `at` included."""
    tail: list[int] = []
    wanted = set(net.values.values())
    shape = net.shapes[net.layers[at].layer.tops[0]]
    while True:
        value = net.layers[at].writes[0]
        behind = readers.get(value, [])
        if value in wanted or len(behind) != 1:
            return affine, tail
        step = net.layers[behind[0]]
        more = _affine(net, step)
        if more is None or net.shapes[step.layer.bottoms[0]] != shape:
            return affine, tail
        affine = more if affine is None else then(affine, more)
        at = behind[0]
        tail.append(at)


def absorbed(net: Net, step: Step, run: Affine) -> Weights | None:
    """The arrays of a layer that has absorbed `run`, the layers after it. None: they hold numbers that are not
    finite."""
    weights: Sequence[Array] = [weight.array() for weight in net.weights[step.layer.key]]
    factor, shift = run.factor, run.shift - run.mean * run.factor
    bias = weights[1].astype(np.float64) if len(weights) > 1 else np.zeros(len(factor))
    with np.errstate(over="ignore", invalid="ignore"):
        made = [_scaled(step, weights[0], factor), (bias * factor + shift).astype(np.float32)]
    return made if all(np.isfinite(array).all() for array in made) else None


def _scaled(step: Step, weight: Array, factor: npt.NDArray[np.float64]) -> Array:
    """The weights with each output multiplied by its factor. The axis of the outputs depends on the type."""
    param = step.layer.param
    if step.layer.type == "Deconvolution":
        group = param.convolution_param.group
        split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return _times(split, factor.reshape(group, 1, weight.shape[1], 1)).reshape(weight.shape)
    last = step.layer.type == "InnerProduct" and param.inner_product_param.transpose
    along = factor if last else factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    return _times(weight, along)


def _times(weight: Array, factor: npt.NDArray[np.float64]) -> Array:
    """The product in double precision, rounded to single piece by piece: the whole of it would be twice as large."""
    out = np.empty(weight.shape, np.float32)
    return np.multiply(weight, factor, out=out, dtype=np.float64, casting="same_kind")
