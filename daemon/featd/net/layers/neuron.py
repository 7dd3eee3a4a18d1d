"""Elementwise layers: activations, Power, Exp, Log, Dropout (which does nothing in TEST)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, register

_FLOAT: Final = 1
_DOUBLE: Final = 11
"""Numbers of ONNX's types."""


@register("ReLU", in_place=True)
def relu(onnx: Builder, at: Lowered) -> list[str]:
    return [_relu(onnx, at, at.layer.param.relu_param.negative_slope)]


def _relu(onnx: Builder, at: Lowered, slope: float) -> str:
    if slope:
        return onnx.node("LeakyRelu", [at.bottoms[0]], alpha=slope)
    top = onnx.node("Relu", [at.bottoms[0]])
    if at.doubtful:
        # Caffe computes max(x, 0) + slope * min(x, 0), and 0 times minus infinity is NaN.
        below = onnx.node("Min", [at.bottoms[0], onnx.scalar(0.0)])
        top = onnx.node("Add", [top, onnx.node("Mul", [below, onnx.scalar(0.0)])])
    return top


@register("ReLU6", in_place=True)
def relu6(onnx: Builder, at: Lowered) -> list[str]:
    """A ReLU with an upper limit, 6 by default."""
    param = at.layer.param.relu6_param
    top = _relu(onnx, at, param.negative_slope)
    return [onnx.node("Min", [top, onnx.scalar(param.threshold)])]


@register("ELU", in_place=True)
def elu(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Elu", at.bottoms, alpha=at.layer.param.elu_param.alpha)]


@register("BNLL", in_place=True)
def bnll(onnx: Builder, at: Lowered) -> list[str]:
    """log(1 + exp(x)); the logarithm in double precision, as in Caffe."""
    negative = onnx.node("Neg", [onnx.node("Abs", at.bottoms)])
    wide = onnx.node("Cast", [onnx.node("Exp", [negative])], to=_DOUBLE)
    log = onnx.node("Log", [onnx.node("Add", [wide, onnx.constant(np.array(1.0))])])
    return [onnx.node("Add", [onnx.node("Relu", at.bottoms), onnx.node("Cast", [log], to=_FLOAT)])]


def _clip_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.clip_param
    if not param.HasField("min") or not param.HasField("max"):
        raise ModelError(f"{layer}: needs min and max")
    return [bottoms[0]]


@register("Clip", _clip_shapes, in_place=True)
def clip(onnx: Builder, at: Lowered) -> list[str]:
    """max(min, min(x, max)), in this order."""
    param = at.layer.param.clip_param
    below, least = onnx.node("Min", [at.bottoms[0], onnx.scalar(param.max)]), onnx.scalar(param.min)
    top = onnx.node("Max", [below, least])
    if at.doubtful:
        # std::max gives its first argument, here min, where the other one is NaN.
        top = onnx.node("Where", [onnx.node("IsNaN", [below]), least, top])
    return [top]


@register("Threshold", in_place=True)
def threshold(onnx: Builder, at: Lowered) -> list[str]:
    above = onnx.node("Greater", [at.bottoms[0], onnx.scalar(at.layer.param.threshold_param.threshold)])
    return [onnx.node("Cast", [above], to=_FLOAT)]


def _prelu_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise ModelError(f"{layer}: needs a bottom of at least 2 axes, has {bottoms[0]}")
    return [()] if layer.param.prelu_param.channel_shared else [(bottoms[0][1],)]


@register("PReLU", params=_prelu_params, in_place=True)
def prelu(onnx: Builder, at: Lowered) -> list[str]:
    # ONNX broadcasts from the last axis; Caffe's slopes are along axis 1.
    slope = at.weights[0].reshape((-1,) + (1,) * (len(at.shapes[0]) - 2))
    return [onnx.node("PRelu", [at.bottoms[0], onnx.constant(slope)])]


@register("Sigmoid", in_place=True)
def sigmoid(onnx: Builder, at: Lowered) -> list[str]:
    return [_sigmoid(onnx, at.bottoms[0])]


def _sigmoid(onnx: Builder, bottom: str) -> str:
    # Not ONNX's Sigmoid: ONNX Runtime's ends at 1.5e-8 where Caffe's goes on towards zero.
    one = onnx.scalar(1.0)
    return onnx.node("Div", [one, onnx.node("Add", [one, onnx.node("Exp", [onnx.node("Neg", [bottom])])])])


@register("Swish", in_place=True)
def swish(onnx: Builder, at: Lowered) -> list[str]:
    """x * sigmoid(beta * x)."""
    bottom, beta = at.bottoms[0], at.layer.param.swish_param.beta
    scaled = bottom if beta == 1 else onnx.node("Mul", [bottom, onnx.scalar(beta)])
    return [onnx.node("Mul", [bottom, _sigmoid(onnx, scaled)])]


@register("TanH", in_place=True)
def tanh(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Tanh", at.bottoms)]


@register("AbsVal")
def absval(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Abs", at.bottoms)]


@register("Dropout", in_place=True)
def dropout(onnx: Builder, at: Lowered) -> list[str]:
    return [at.bottoms[0]]


@register("Power", in_place=True)
def power(onnx: Builder, at: Lowered) -> list[str]:
    """(shift + scale * x) ^ power."""
    param = at.layer.param.power_param
    if param.power == 0 or param.scale == 0:
        # Caffe ignores the input then, even NaN: the result is a constant of the input's shape.
        value = 1.0 if param.power == 0 else float(np.float32(param.shift) ** np.float32(param.power))
        shape = onnx.node("Shape", at.bottoms)
        return [onnx.node("Expand", [onnx.scalar(value), shape])]
    top = _scaled(onnx, at.bottoms[0], param.scale, param.shift)
    if param.power == 2:
        return [onnx.node("Mul", [top, top])]
    if param.power == 0.5 and not at.doubtful:  # of minus infinity, the root is NaN and the power infinity
        return [onnx.node("Sqrt", [top])]
    if param.power != 1:
        top = onnx.node("Pow", [top, onnx.scalar(param.power)])
    return [top]


def _scaled(onnx: Builder, tensor: str, scale: float, shift: float) -> str:
    """shift + scale * x."""
    if scale != 1:
        tensor = onnx.node("Mul", [tensor, onnx.scalar(scale)])
    return onnx.node("Add", [tensor, onnx.scalar(shift)]) if shift != 0 else tensor


def _log_base(layer: Layer, base: float) -> float:
    """The logarithm of a base; -1 means e. ModelError where Caffe would abort."""
    if base == -1:
        return 1.0
    log = math.log(base) if base > 0 and math.isfinite(base) else math.nan
    if math.isnan(log):
        raise ModelError(f"{layer}: base must be positive, is {base}")
    return log


def _exp_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _log_base(layer, layer.param.exp_param.base)
    return [bottoms[0]]


@register("Exp", _exp_shapes, in_place=True)
def exp(onnx: Builder, at: Lowered) -> list[str]:
    """base ^ (shift + scale * x)."""
    param = at.layer.param.exp_param
    log = _log_base(at.layer, param.base)
    with np.errstate(over="ignore"):
        outer = float(np.exp(np.float32(log * param.shift)))
    top = onnx.node("Exp", [_scaled(onnx, at.bottoms[0], log * param.scale, 0)])
    return [top if outer == 1 else onnx.node("Mul", [top, onnx.scalar(outer)])]


def _log_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if _log_base(layer, layer.param.log_param.base) == 0:
        raise ModelError(f"{layer}: base 1 has no logarithm")
    return [bottoms[0]]


@register("Log", _log_shapes, in_place=True)
def log(onnx: Builder, at: Lowered) -> list[str]:
    """log(shift + scale * x) to a base."""
    param = at.layer.param.log_param
    base = _log_base(at.layer, param.base)
    top = onnx.node("Log", [_scaled(onnx, at.bottoms[0], param.scale, param.shift)])
    return [top if base == 1 else onnx.node("Mul", [top, onnx.scalar(1 / base)])]
