"""Layers that combine or split blobs: Concat, Slice, Eltwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, axis_of, register
from featd.net.schema import Message

_OPERATIONS = {number: name for name, number in schema.ENUMS["EltwiseParameter.EltwiseOp"].items()}


def _axis(layer: Layer, param: Message, old: str, rank: int) -> int:
    """The axis of a layer, which has another name in `old` definitions."""
    if param.HasField("axis") and param.HasField(old):
        raise ModelError(f"{layer}: write either axis or {old}")
    return axis_of(layer, getattr(param, old) if param.HasField(old) else param.axis, rank)


def _concat_axis(layer: Layer, rank: int) -> int:
    return _axis(layer, layer.param.concat_param, "concat_dim", rank)


def _concat_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    axis = _concat_axis(layer, len(bottoms[0]))
    for bottom in bottoms[1:]:
        if len(bottom) != len(bottoms[0]) or any(
            one != other for at, (one, other) in enumerate(zip(bottom, bottoms[0], strict=True)) if at != axis
        ):
            raise ModelError(f"{layer}: bottoms {bottoms[0]} and {bottom} differ outside axis {axis}")
    return [(*bottoms[0][:axis], sum(bottom[axis] for bottom in bottoms), *bottoms[0][axis + 1 :])]


@register("Concat", _concat_shapes, bottoms=(1, MANY))
def concat(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Concat", at.bottoms, axis=_concat_axis(at.layer, len(at.shapes[0])))]


def _slice_axis(layer: Layer, rank: int) -> int:
    return _axis(layer, layer.param.slice_param, "slice_dim", rank)


def _slice_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    bottom, count = bottoms[0], len(layer.tops)
    axis = _slice_axis(layer, len(bottom))
    points = list(layer.param.slice_param.slice_point)
    if not points:
        if bottom[axis] % count:
            raise ModelError(
                f"{layer}: {count} tops do not divide the {bottom[axis]} entries of axis {axis} evenly"
            )
        points = [bottom[axis] // count * at for at in range(1, count)]
    cuts = [0, *points, bottom[axis]]
    if len(points) != count - 1 or any(one >= other for one, other in pairwise(cuts)):
        raise ModelError(
            f"{layer}: slice_point {points} does not cut the {bottom[axis]} entries of axis {axis} into {count}"
        )
    return [(*bottom[:axis], other - one, *bottom[axis + 1 :]) for one, other in pairwise(cuts)]


@register("Slice", _slice_shapes, tops=(1, MANY))
def slice_(onnx: Builder, at: Lowered) -> list[str]:
    axis = _slice_axis(at.layer, len(at.shapes[0]))
    if len(at.tops) == 1:
        return [at.bottoms[0]]
    tops, start = [], 0
    for top in at.tops:
        tops.append(cut(onnx, at.bottoms[0], {axis: (start, start + top[axis])}))
        start += top[axis]
    return tops


def cut(onnx: Builder, tensor: str, ranges: Mapping[int, tuple[int, int]]) -> str:
    """The part of a tensor within [start, end) of some axes."""
    starts, ends = zip(*ranges.values(), strict=True)
    arrays = [onnx.constant(np.array(values, np.int64)) for values in (starts, ends, tuple(ranges))]
    return onnx.node("Slice", [tensor, *arrays])


def _eltwise_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.eltwise_param
    if param.operation not in _OPERATIONS:
        raise ModelError(f"{layer}: unknown operation")
    if any(bottom != bottoms[0] for bottom in bottoms):
        raise ModelError(f"{layer}: its bottoms differ in shape: {', '.join(map(str, bottoms))}")
    if param.coeff and len(param.coeff) != len(bottoms):
        raise ModelError(f"{layer}: {len(param.coeff)} coeff for {len(bottoms)} bottoms")
    if param.coeff and _OPERATIONS[param.operation] == "PROD":
        raise ModelError(f"{layer}: coeff belongs to SUM, not to PROD")
    if _OPERATIONS[param.operation] != "PROD" and set(layer.bottoms) & set(layer.tops):
        # Caffe sets the top to a constant before it reads.
        raise ModelError(
            f"{layer}: in place Caffe loses its first bottom, except with PROD: give its top another name"
        )
    return [bottoms[0]]


@register("Eltwise", _eltwise_shapes, bottoms=(2, MANY), in_place=True)
def eltwise(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.eltwise_param
    operation = _OPERATIONS[param.operation]
    terms = list(at.bottoms)
    if operation == "MAX" and at.doubtful:
        # With NaN the order counts: the second of the first two wins, and a later one never does.
        top, *later = terms
        for place, other in enumerate(later):
            pair = [top, other] if place == 0 else [other, top]
            top = onnx.node("Where", [onnx.node("Greater", pair), *pair])
        return [top]
    if operation == "MAX":
        return [onnx.node("Max", terms)]
    if operation == "SUM":
        for place, coeff in enumerate(param.coeff):
            if coeff == 0 and at.doubtful:
                # BLAS does not read a term whose coefficient is 0, not even NaN.
                terms[place] = onnx.node("Expand", [onnx.scalar(0.0), onnx.node("Shape", [terms[place]])])
            elif coeff != 1:
                terms[place] = onnx.node("Mul", [terms[place], onnx.scalar(coeff)])
    op = "Mul" if operation == "PROD" else "Add"
    return [reduce(lambda one, other: onnx.node(op, [one, other]), terms)]
