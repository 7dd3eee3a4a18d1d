"""Layers that give numbers another shape: Flatten, Reshape, Split; and inputs and constants: DummyData, Parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net.graph import INPUT, Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, axis_of, register


def _input_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    shapes = [tuple(int(dim) for dim in shape.dim) for shape in layer.param.input_param.shape]
    if len(shapes) not in (1, len(layer.tops)):
        raise ModelError(f"{layer}: {len(layer.tops)} tops need one input_param shape, or one each")
    shapes = shapes * len(layer.tops) if len(shapes) == 1 else shapes
    if any(not shape or min(shape) < 1 or max(shape) >= 2**31 for shape in shapes):
        raise ModelError(f"{layer}: every dim of its shape must be at least 1 and less than 2^31")
    return shapes


@register(INPUT, _input_shapes, bottoms=(0, 0), tops=(1, MANY))
def lower_input(onnx: Builder, at: Lowered) -> list[str]:
    raise AssertionError("inputs are the graph's own; nothing lowers them")


def _flatten_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param, bottom = layer.param.flatten_param, bottoms[0]
    start, end = axis_of(layer, param.axis, len(bottom)), axis_of(layer, param.end_axis, len(bottom))
    if end < start:
        raise ModelError(f"{layer}: end_axis lies before axis")
    return [(*bottom[:start], math.prod(bottom[start : end + 1]), *bottom[end + 1 :])]


@register("Flatten", _flatten_shapes)
def flatten(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.reshape(at.bottoms[0], at.tops[0], at.fixed[0])]


def _reshape_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Reshape of Caffe 1.0: dims of `shape` stand for bottom axes [axis, axis + num_axes); 0 copies, -1 infers."""
    param, bottom = layer.param.reshape_param, bottoms[0]
    start = param.axis if param.axis >= 0 else len(bottom) + param.axis + 1
    end = len(bottom) if param.num_axes == -1 else start + param.num_axes
    dims = [int(dim) for dim in param.shape.dim]
    if not 0 <= start <= end <= len(bottom):
        raise ModelError(f"{layer}: axis and num_axes are out of range for its bottom {bottom}")
    if dims.count(-1) > 1 or min(dims, default=0) < -1:
        raise ModelError(f"{layer}: its shape may hold one -1 and no other negative dim")
    for at, dim in enumerate(dims):
        if dim == 0:
            if start + at >= len(bottom):
                raise ModelError(
                    f"{layer}: its shape copies axis {start + at}, which its bottom {bottom} lacks"
                )
            dims[at] = bottom[start + at]
    if -1 in dims:
        known = (
            math.prod(dim for dim in dims if dim != -1) * math.prod(bottom[:start]) * math.prod(bottom[end:])
        )
        dims[dims.index(-1)] = math.prod(bottom) // known if known else 0
    top = (*bottom[:start], *dims, *bottom[end:])
    if math.prod(top) != math.prod(bottom):
        raise ModelError(f"{layer}: cannot make {bottom} into {top}: the counts differ")
    return [top]


@register("Reshape", _reshape_shapes)
def reshape(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.reshape(at.bottoms[0], at.tops[0], at.fixed[0])]


def _split_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [bottoms[0]] * len(layer.tops)


@register("Split", _split_shapes, tops=(1, MANY))
def split(onnx: Builder, at: Lowered) -> list[str]:
    return [at.bottoms[0]] * len(at.tops)


def _silence_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return []


@register("Silence", _silence_shapes, bottoms=(1, MANY), tops=(0, 0))
def silence(onnx: Builder, at: Lowered) -> list[str]:
    return []


def _dummy_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    # featd.net.upgrade has brought every DummyData to one top, one shape and at most one filler.
    param = layer.param.dummy_data_param
    filler = param.data_filler[0].type if param.data_filler else "constant"
    if filler != "constant":
        raise ModelError(f"{layer}: its filler {filler!r} is random: no two runs would give the same vectors")
    return [tuple(int(dim) for dim in param.shape[0].dim)]


@register("DummyData", _dummy_shapes, bottoms=(0, 0))
def dummy_data(onnx: Builder, at: Lowered) -> list[str]:
    fillers = at.layer.param.dummy_data_param.data_filler
    value = onnx.scalar(fillers[0].value if fillers else 0.0)
    if not at.tops[0]:
        return [value]
    return [onnx.node("Expand", [value, onnx.constant(np.array(at.tops[0], np.int64))])]


def _parameter_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [tuple(int(dim) for dim in layer.param.parameter_param.shape.dim)]


@register("Parameter", _parameter_shapes, _parameter_shapes, bottoms=(0, 0))
def parameter(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.constant(at.weights[0])]
