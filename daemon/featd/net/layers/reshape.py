"""Layers that move or rename numbers without changing them: Input, Flatten, Reshape, Split."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featd.errors import ModelError
from featd.net.graph import INPUT, Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, axis_of, register


def _input_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    shapes = [tuple(int(dim) for dim in shape.dim) for shape in layer.param.input_param.shape]
    if len(shapes) not in (1, len(layer.tops)):
        raise ModelError(f"{layer}: {len(layer.tops)} tops need one input_param shape, or one each")
    shapes = shapes * len(layer.tops) if len(shapes) == 1 else shapes
    if any(not shape or min(shape) < 1 for shape in shapes):
        raise ModelError(f"{layer}: every dim of its shape must be at least 1")
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
    return [onnx.reshape(at.bottoms[0], at.tops[0])]


def _reshape_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Reshape of Caffe 1.0: dims of `shape` stand for bottom axes [axis, axis + num_axes); 0 copies, -1 infers."""
    param, bottom = layer.param.reshape_param, bottoms[0]
    start = param.axis if param.axis >= 0 else len(bottom) + param.axis + 1
    end = len(bottom) if param.num_axes == -1 else start + param.num_axes
    dims = [int(dim) for dim in param.shape.dim]
    if not 0 <= start <= len(bottom) or not start <= end <= len(bottom):
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
    return [onnx.reshape(at.bottoms[0], at.tops[0])]


def _split_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [bottoms[0]] * len(layer.tops)


@register("Split", _split_shapes, tops=(1, MANY))
def split(onnx: Builder, at: Lowered) -> list[str]:
    return [at.bottoms[0]] * len(at.tops)
