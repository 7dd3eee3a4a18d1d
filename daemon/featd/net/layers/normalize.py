"""LRN, Softmax, BatchNorm (with stored statistics) and Scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, axis_of, cannot, register

_WITHIN = schema.ENUMS["LRNParameter.NormRegion"]["WITHIN_CHANNEL"]


def _lrn_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if layer.param.lrn_param.local_size % 2 == 0:
        raise ModelError(f"{layer}: local_size must be odd")
    if len(bottoms[0]) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottoms[0]}")
    return [bottoms[0]]


@register("LRN", _lrn_shapes)
def lrn(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.lrn_param
    bottom, size = at.bottoms[0], param.local_size
    if param.norm_region != _WITHIN:
        return [onnx.node("LRN", [bottom], size=size, alpha=param.alpha, beta=param.beta, bias=param.k)]
    # As lrn_layer.cpp puts it together: x * (1 + alpha * mean of squares in the window)^-beta; k is not used.
    pad = (size - 1) // 2
    mean = onnx.node(
        "AveragePool",
        [onnx.node("Mul", [bottom, bottom])],
        kernel_shape=(size, size),
        strides=(1, 1),
        pads=(pad,) * 4,
        count_include_pad=1,
    )
    scale = onnx.node("Add", [onnx.node("Mul", [mean, onnx.scalar(param.alpha)]), onnx.scalar(1.0)])
    return [onnx.node("Mul", [bottom, onnx.node("Pow", [scale, onnx.scalar(-param.beta)])])]


def _softmax_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    axis_of(layer, layer.param.softmax_param.axis, len(bottoms[0]))
    return [bottoms[0]]


@register("Softmax", _softmax_shapes, in_place=True)
def softmax(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Softmax", at.bottoms, axis=at.layer.param.softmax_param.axis)]


def _batch_norm_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    return [(channels,), (channels,), (1,)]


@register("BatchNorm", params=_batch_norm_params, in_place=True)
def batch_norm(onnx: Builder, at: Lowered) -> list[str]:
    """(x - mean) / sqrt(variance + eps); the stored statistics are divided by the third array."""
    param = at.layer.param.batch_norm_param
    if param.HasField("use_global_stats") and not param.use_global_stats:
        raise cannot(at.layer, "use_global_stats: false makes a vector depend on its neighbours in the batch")
    if len(at.shapes[0]) < 2:
        raise cannot(at.layer, "a bottom of one axis")
    mean, variance, factor = (array.astype(np.float32) for array in at.weights)
    scale = np.float32(0) if factor[0] == 0 else np.float32(1) / factor[0]
    ones = np.ones_like(mean)
    arrays = [onnx.constant(array) for array in (ones, np.zeros_like(mean), mean * scale, variance * scale)]
    return [onnx.node("BatchNormalization", [at.bottoms[0], *arrays], epsilon=param.eps)]


def _scale_span(layer: Layer, bottoms: Sequence[Shape]) -> tuple[int, Shape]:
    """The first axis that is scaled, and the shape of the scale."""
    param = layer.param.scale_param
    axis = axis_of(layer, param.axis, len(bottoms[0]))
    if len(bottoms) > 1:
        span = bottoms[1]
        # Caffe: a scale of no axes may stand anywhere.
        axis = axis if span else 0
    else:
        end = len(bottoms[0]) if param.num_axes == -1 else axis + param.num_axes
        span = bottoms[0][axis:end]
        if end > len(bottoms[0]):
            raise ModelError(f"{layer}: num_axes {param.num_axes} reaches past its bottom {bottoms[0]}")
    if bottoms[0][axis : axis + len(span)] != span:
        raise ModelError(
            f"{layer}: a scale of shape {span} does not fit its bottom {bottoms[0]} from axis {axis}"
        )
    return axis, span


def _scale_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _scale_span(layer, bottoms)
    return [bottoms[0]]


def _scale_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _, span = _scale_span(layer, bottoms)
    learned = 1 if len(bottoms) == 1 else 0
    return [span] * (learned + (1 if layer.param.scale_param.bias_term else 0))


@register("Scale", _scale_shapes, _scale_params, bottoms=(1, 2), in_place=True)
def scale(onnx: Builder, at: Lowered) -> list[str]:
    axis, span = _scale_span(at.layer, at.shapes)
    spread = (*span, *(1,) * (len(at.shapes[0]) - axis - len(span)))
    weights = [onnx.constant(array.reshape(spread)) for array in at.weights]
    if len(at.bottoms) > 1:
        if axis == 0 and span:
            factor = onnx.reshape(at.bottoms[1], spread)
        else:
            raise cannot(at.layer, "a second bottom without a batch axis")
    else:
        factor = weights.pop(0)
    top = onnx.node("Mul", [at.bottoms[0], factor])
    return [onnx.node("Add", [top, weights[0]]) if weights else top]
