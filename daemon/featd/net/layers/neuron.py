"""Layers that look at one number at a time: activations, Power, Dropout (which does nothing in TEST)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, register


@register("ReLU", in_place=True)
def relu(onnx: Builder, at: Lowered) -> list[str]:
    slope = at.layer.param.relu_param.negative_slope
    if slope == 0:
        return [onnx.node("Relu", at.bottoms)]
    return [onnx.node("LeakyRelu", at.bottoms, alpha=slope)]


def _prelu_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise ModelError(f"{layer}: needs a bottom of at least 2 axes, has {bottoms[0]}")
    return [()] if layer.param.prelu_param.channel_shared else [(bottoms[0][1],)]


@register("PReLU", params=_prelu_params, in_place=True)
def prelu(onnx: Builder, at: Lowered) -> list[str]:
    # ONNX broadcasts from the right; Caffe's slopes lie along axis 1.
    slope = at.weights[0].reshape((-1,) + (1,) * (len(at.shapes[0]) - 2))
    return [onnx.node("PRelu", [at.bottoms[0], onnx.constant(slope)])]


@register("Sigmoid", in_place=True)
def sigmoid(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Sigmoid", at.bottoms)]


@register("TanH", in_place=True)
def tanh(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Tanh", at.bottoms)]


@register("AbsVal", in_place=True)
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
        # Caffe does not look at the input then, not even for NaN: a constant, spread over the input's shape.
        value = 1.0 if param.power == 0 else float(np.float32(param.shift) ** np.float32(param.power))
        shape = onnx.node("Shape", at.bottoms)
        return [onnx.node("Expand", [onnx.scalar(value), shape])]
    top = at.bottoms[0]
    if param.scale != 1:
        top = onnx.node("Mul", [top, onnx.scalar(param.scale)])
    if param.shift != 0:
        top = onnx.node("Add", [top, onnx.scalar(param.shift)])
    if param.power == 2:
        return [onnx.node("Mul", [top, top])]
    if param.power == 0.5:
        return [onnx.node("Sqrt", [top])]
    if param.power != 1:
        top = onnx.node("Pow", [top, onnx.scalar(param.power)])
    return [top]
