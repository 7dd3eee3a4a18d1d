"""BatchNorm, Scale, Bias and Axpy: layers that multiply by and add columns along some axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.affine import of_layer, statistics
from featd.net.layers.registry import Builder, Lowered, axis_of, register


def _batch_norm_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise ModelError(f"{layer}: needs a bottom of at least 2 axes, has {bottoms[0]}")
    channels = bottoms[0][1]
    return [(channels,), (channels,), (1,)]


def _own_statistics(layer: Layer) -> bool:
    param = layer.param.batch_norm_param
    return bool(param.HasField("use_global_stats") and not param.use_global_stats)


def _batch_norm_mixes(layer: Layer, bottoms: Sequence[Shape]) -> str | None:
    if _own_statistics(layer):
        return "use_global_stats: false takes mean and variance from the batch"
    return None


@register("BatchNorm", params=_batch_norm_params, in_place=True, mixes=_batch_norm_mixes)
def batch_norm(onnx: Builder, at: Lowered) -> list[str]:
    """(x - mean) / sqrt(variance + eps)."""
    eps = at.layer.param.batch_norm_param.eps
    if _own_statistics(at.layer):
        axes = [0, *range(2, len(at.shapes[0]))]
        centred = onnx.node(
            "Sub", [at.bottoms[0], onnx.node("ReduceMean", at.bottoms, axes=axes, keepdims=1)]
        )
        squares = onnx.node("Mul", [centred, centred])
        variance = onnx.node("ReduceMean", [squares], axes=axes, keepdims=1)
        deviation = onnx.node("Sqrt", [onnx.node("Add", [variance, onnx.scalar(eps)])])
        return [onnx.node("Div", [centred, deviation])]
    affine = of_layer(at.layer, at.shapes, at.weights)
    if affine is not None:
        return affine.lower(onnx, at)
    # Numbers that are not finite come out as they do in Caffe.
    mean, root = (
        onnx.constant(column.astype(np.float32).reshape((-1,) + (1,) * (len(at.shapes[0]) - 2)))
        for column in statistics(at.weights, eps)
    )
    return [onnx.node("Div", [onnx.node("Sub", [at.bottoms[0], mean]), root])]


def _span(layer: Layer, axis: int, num_axes: int, bottoms: Sequence[Shape]) -> tuple[int, Shape]:
    """The first axis that a column lies along, and the column's shape."""
    first = bottoms[0]
    if num_axes < -1:
        raise ModelError(f"{layer}: num_axes must be -1 or more, is {num_axes}")
    if len(bottoms) > 1:
        span = bottoms[1]
        # In Caffe, a scale without axes may have any `axis`.
        start = axis_of(layer, axis, len(first)) if span else 0
    else:
        start = axis_of(layer, axis, len(first))
        end = len(first) if num_axes == -1 else start + num_axes
        span = first[start:end]
        if end > len(first):
            raise ModelError(f"{layer}: num_axes {num_axes} reaches past its bottom {first}")
    if first[start : start + len(span)] != span:
        raise ModelError(
            f"{layer}: a column of shape {span} does not fit its bottom {first} from axis {start}"
        )
    return start, span


def _scale_span(layer: Layer, bottoms: Sequence[Shape]) -> tuple[int, Shape]:
    return _span(layer, layer.param.scale_param.axis, layer.param.scale_param.num_axes, bottoms)


def _bias_span(layer: Layer, bottoms: Sequence[Shape]) -> tuple[int, Shape]:
    return _span(layer, layer.param.bias_param.axis, layer.param.bias_param.num_axes, bottoms)


def _spread(at: Lowered, start: int, span: Shape) -> Shape:
    return (*span, *(1,) * (len(at.shapes[0]) - start - len(span)))


def _column(onnx: Builder, at: Lowered, start: int, span: Shape) -> str:
    """The second bottom, with axes so that it spreads over the first from axis `start`."""
    return onnx.reshape(at.bottoms[1], _spread(at, start, span), at.fixed[1] or start > 0 or not span)


def _scale_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _scale_span(layer, bottoms)
    return [bottoms[0]]


def _scale_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _, span = _scale_span(layer, bottoms)
    bias = [span] if layer.param.scale_param.bias_term else []
    if len(bottoms) == 1:
        return [span, *bias]
    # Caffe adds the bias by a Bias layer with `axis` as written, also where the scale begins at another axis.
    if bias and not span:
        axis_of(layer, layer.param.scale_param.axis, len(bottoms[0]))
    return bias


@register("Scale", _scale_shapes, _scale_params, bottoms=(1, 2), in_place=True)
def scale(onnx: Builder, at: Lowered) -> list[str]:
    start, span = _scale_span(at.layer, at.shapes)
    arrays = [onnx.constant(array.reshape(_spread(at, start, span))) for array in at.weights]
    factor = _column(onnx, at, start, span) if len(at.bottoms) > 1 else arrays.pop(0)
    top = onnx.node("Mul", [at.bottoms[0], factor])
    return [onnx.node("Add", [top, arrays[0]]) if arrays else top]


def _bias_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    _bias_span(layer, bottoms)
    return [bottoms[0]]


def _bias_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [_bias_span(layer, bottoms)[1]] if len(bottoms) == 1 else []


@register("Bias", _bias_shapes, _bias_params, bottoms=(1, 2), in_place=True)
def bias(onnx: Builder, at: Lowered) -> list[str]:
    start, span = _bias_span(at.layer, at.shapes)
    if len(at.bottoms) > 1:
        column = _column(onnx, at, start, span)
    else:
        column = onnx.constant(at.weights[0].reshape(_spread(at, start, span)))
    return [onnx.node("Add", [at.bottoms[0], column])]


def _axpy_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    factor, one, other = bottoms
    if one != other or len(one) < 2 or factor[:2] != one[:2] or any(dim != 1 for dim in factor[2:]):
        raise ModelError(
            f"{layer}: needs a factor per channel and two blobs of one shape, has {factor}, {one}, {other}"
        )
    return [one]


@register("Axpy", _axpy_shapes, bottoms=(3, 3))
def axpy(onnx: Builder, at: Lowered) -> list[str]:
    """a * x + y, a per channel (SENet)."""
    spread = (*at.shapes[1][:2], *(1,) * (len(at.shapes[1]) - 2))
    factor = onnx.reshape(at.bottoms[0], spread, at.fixed[0])
    return [onnx.node("Add", [onnx.node("Mul", [factor, at.bottoms[1]]), at.bottoms[2]])]
