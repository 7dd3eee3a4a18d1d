"""BatchNorm (with stored statistics), Scale and Bias where they do the same to all numbers of a channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, Weights

Column = npt.NDArray[np.float64]

_FAR: Final = 16.0
"""Where a mean is more than this many deviations from zero, it is subtracted first: factor * x + shift would
lose precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """(x - mean) * factor + shift, one entry each per channel (axis 1)."""

    mean: Column
    factor: Column
    shift: Column

    def lower(self, onnx: Builder, at: Lowered) -> list[str]:
        """One operation on the numbers, or two where the mean is far from zero."""
        rank = len(at.shapes[0])
        bottom, shift = at.bottoms[0], self.shift
        with np.errstate(over="ignore", invalid="ignore"):
            far = bool((np.abs(self.mean * self.factor) > _FAR).any())
        if far:
            mean = self.mean.astype(np.float32).reshape((-1,) + (1,) * (rank - 2))
            bottom = onnx.node("Sub", [bottom, onnx.constant(mean)])
        else:
            shift = shift - self.mean * self.factor
        zero, one = np.zeros(len(shift), np.float32), np.ones(len(shift), np.float32)
        columns = (self.factor.astype(np.float32), shift.astype(np.float32), zero, one)
        arrays = [onnx.constant(column) for column in columns]
        return [onnx.node("BatchNormalization", [bottom, *arrays], epsilon=0.0)]


def then(first: Affine, second: Affine) -> Affine:
    """Both, one after the other."""
    return Affine(
        first.mean, first.factor * second.factor, (first.shift - second.mean) * second.factor + second.shift
    )


def of_layer(layer: Layer, shapes: Sequence[Shape], weights: Weights) -> Affine | None:
    """What a layer does per channel; None where it does something else."""
    if len(shapes) != 1 or len(shapes[0]) < 2 or len(layer.bottoms) != 1:
        return None
    made = _MADE[layer.type](layer, shapes[0][1], weights) if layer.type in _MADE else None
    if made is None or not all(np.isfinite(column).all() for column in (made.mean, made.factor, made.shift)):
        return None
    return made


def _batch_norm(layer: Layer, channels: int, weights: Weights) -> Affine | None:
    param = layer.param.batch_norm_param
    if param.HasField("use_global_stats") and not param.use_global_stats:
        return None
    mean, deviation = statistics(weights, param.eps)
    with np.errstate(divide="ignore"):
        return Affine(mean, 1 / deviation, np.zeros(channels))


def statistics(weights: Weights, eps: float) -> tuple[Column, Column]:
    """Mean and deviation: the stored ones, divided by the third array; all zeros where that is 0."""
    mean, variance, count = (array.astype(np.float64) for array in weights)
    scale = 0.0 if count[0] == 0 else 1 / count[0]
    with np.errstate(invalid="ignore"):
        return mean * scale, np.sqrt(variance * scale + np.float32(eps))


def _scale(layer: Layer, channels: int, weights: Weights) -> Affine | None:
    if not _along_channels(layer.param.scale_param, channels, weights):
        return None
    shift = weights[1].astype(np.float64) if len(weights) > 1 else np.zeros(channels)
    return Affine(np.zeros(channels), weights[0].astype(np.float64), shift)


def _bias(layer: Layer, channels: int, weights: Weights) -> Affine | None:
    if not _along_channels(layer.param.bias_param, channels, weights):
        return None
    return Affine(np.zeros(channels), np.ones(channels), weights[0].astype(np.float64))


def _along_channels(param: object, channels: int, weights: Weights) -> bool:
    return getattr(param, "axis", None) == 1 and weights[0].shape == (channels,)


def bn(layer: Layer, channels: int, weights: Weights) -> Affine:
    """The BN of branches: slope, bias, mean and variance, or only scale and shift."""
    factor, shift, *rest = (array.astype(np.float64).ravel() for array in weights)
    if not rest:
        return Affine(np.zeros(channels), factor, shift)
    mean, variance = rest
    with np.errstate(invalid="ignore", divide="ignore"):
        return Affine(mean, factor / np.sqrt(variance + np.float32(layer.param.bn_param.eps)), shift)


_MADE = {"BN": bn, "BatchNorm": _batch_norm, "Scale": _scale, "Bias": _bias}
