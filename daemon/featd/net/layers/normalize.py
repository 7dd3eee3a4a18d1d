"""LRN, Softmax, MVN and Normalize (of SSD)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.pooling import average_lrn
from featd.net.layers.registry import Builder, Lowered, axis_of, register

_WITHIN = schema.ENUMS["LRNParameter.NormRegion"]["WITHIN_CHANNEL"]
_MOST_CHANNELS = 1 << 20


def _lrn_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    size = layer.param.lrn_param.local_size
    if size % 2 == 0:
        raise ModelError(f"{layer}: local_size must be odd")
    if len(bottoms[0]) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottoms[0]}")
    if size > _MOST_CHANNELS:
        raise ModelError(f"{layer}: local_size {size} is wider than any blob")
    if layer.param.lrn_param.norm_region == _WITHIN:
        average_lrn(layer, bottoms[0], size)
    return [bottoms[0]]


@register("LRN", _lrn_shapes)
def lrn(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.lrn_param
    bottom, size = at.bottoms[0], param.local_size
    if param.norm_region != _WITHIN and (param.alpha <= 0 or param.beta <= 0):
        return [_lrn_written_out(onnx, at)]
    if param.norm_region != _WITHIN:
        # Channels beyond both ends count as zeros: a window wider than all channels sums all of them.
        widest = 2 * at.shapes[0][1] + 1
        width = min(size, widest)
        return [
            onnx.node(
                "LRN", [bottom], size=width, alpha=param.alpha * width / size, beta=param.beta, bias=param.k
            )
        ]
    # As in lrn_layer.cpp: x * (1 + alpha * mean of squares in the window)^-beta; k is not used.
    windows = average_lrn(at.layer, at.shapes[0], size)
    mean = windows.average(onnx, onnx.node("Mul", [bottom, bottom]))
    scale = onnx.node("Add", [onnx.node("Mul", [mean, onnx.scalar(param.alpha)]), onnx.scalar(1.0)])
    return [onnx.node("Mul", [bottom, onnx.node("Pow", [scale, onnx.scalar(-param.beta)])])]


def _lrn_written_out(onnx: Builder, at: Lowered) -> str:
    """LRN ACROSS_CHANNELS for the settings that ONNX Runtime's own does not take."""
    param, (_, channels, height, width) = at.layer.param.lrn_param, at.shapes[0]
    rows = onnx.reshape(at.bottoms[0], (1, channels, height * width), at.fixed[0])
    away = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    within = (away <= (param.local_size - 1) // 2) * (param.alpha / param.local_size)
    sums = onnx.node("MatMul", [onnx.constant(within.astype(np.float32)), onnx.node("Mul", [rows, rows])])
    scale = onnx.node("Pow", [onnx.node("Add", [sums, onnx.scalar(param.k)]), onnx.scalar(-param.beta)])
    return onnx.reshape(onnx.node("Mul", [rows, scale]), at.shapes[0], at.fixed[0])


def _softmax_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    axis_of(layer, layer.param.softmax_param.axis, len(bottoms[0]))
    return [bottoms[0]]


def _softmax_mixes(layer: Layer, bottoms: Sequence[Shape]) -> str | None:
    over_batch = axis_of(layer, layer.param.softmax_param.axis, len(bottoms[0])) == 0
    return "it sums over the batch" if over_batch else None


@register("Softmax", _softmax_shapes, in_place=True, mixes=_softmax_mixes)
def softmax(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Softmax", at.bottoms, axis=at.layer.param.softmax_param.axis)]


def _four(layer: Layer, bottom: Shape) -> Shape:
    """A blob as Caffe's old accessors (num, channels, height, width) see it."""
    if len(bottom) > 4:
        raise ModelError(f"{layer}: needs a bottom of at most 4 axes, has {bottom}")
    return (*bottom, *(1,) * (4 - len(bottom)))


def _mvn_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    top = _four(layer, bottoms[0])
    if top != bottoms[0] and set(layer.bottoms) & set(layer.tops):
        raise ModelError(f"{layer}: changes its blob's shape: give its top another name than its bottom")
    return [top]


@register("MVN", _mvn_shapes, in_place=True)
def mvn(onnx: Builder, at: Lowered) -> list[str]:
    """(x - mean) / (deviation + eps), of each channel of an image or of the whole image."""
    param, top = at.layer.param.mvn_param, at.tops[0]
    groups = 1 if param.across_channels else top[1]
    rows = onnx.reshape(at.bottoms[0], (top[0], groups, math.prod(top[1:]) // groups), at.fixed[0])
    out = onnx.node("Sub", [rows, onnx.node("ReduceMean", [rows], axes=[2], keepdims=1)])
    if param.normalize_variance:
        variance = onnx.node("ReduceMean", [onnx.node("Mul", [out, out])], axes=[2], keepdims=1)
        deviation = onnx.node("Add", [onnx.node("Sqrt", [variance]), onnx.scalar(param.eps)])
        out = onnx.node("Div", [out, deviation])
    return [onnx.reshape(out, top, at.fixed[0])]


def _normalize_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise ModelError(f"{layer}: needs a bottom of at least 2 axes, has {bottoms[0]}")
    _four(layer, bottoms[0])
    return [()] if layer.param.norm_param.channel_shared else [(bottoms[0][1],)]


@register("Normalize", params=_normalize_params)
def normalize(onnx: Builder, at: Lowered) -> list[str]:
    """x / sqrt(sum of squares + eps) * scale; the sum over the image, or over the channels of each place."""
    param, rank = at.layer.param.norm_param, len(at.shapes[0])
    axes = list(range(1, rank)) if param.across_spatial else [1]
    squares = onnx.node("Mul", [at.bottoms[0], at.bottoms[0]])
    total = onnx.node("ReduceSum", [squares, onnx.constant(np.array(axes, np.int64))], keepdims=1)
    length = onnx.node("Sqrt", [onnx.node("Add", [total, onnx.scalar(param.eps)])])
    scale = onnx.constant(at.weights[0].reshape((-1,) + (1,) * (rank - 2)))
    top = onnx.node("Mul", [onnx.node("Div", [at.bottoms[0], length]), scale])
    if at.doubtful and param.across_spatial:
        # Where the sum is not finite, BLAS scales the image by 0, and makes even NaN 0.
        finite = onnx.node("Less", [total, onnx.scalar(np.inf)])
        top = onnx.node("Where", [finite, top, onnx.scalar(0.0)])
    return [top]
