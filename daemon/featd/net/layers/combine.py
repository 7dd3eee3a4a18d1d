"""Layers that bring several blobs together: Concat, Eltwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, axis_of, register

_OPERATIONS = {number: name for name, number in schema.ENUMS["EltwiseParameter.EltwiseOp"].items()}


def _concat_axis(layer: Layer, rank: int) -> int:
    param = layer.param.concat_param
    if param.HasField("axis") and param.HasField("concat_dim"):
        raise ModelError(f"{layer}: write either axis or concat_dim")
    return axis_of(layer, param.concat_dim if param.HasField("concat_dim") else param.axis, rank)


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


def _eltwise_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.eltwise_param
    if any(bottom != bottoms[0] for bottom in bottoms):
        raise ModelError(f"{layer}: its bottoms differ in shape: {', '.join(map(str, bottoms))}")
    if param.coeff and len(param.coeff) != len(bottoms):
        raise ModelError(f"{layer}: {len(param.coeff)} coeff for {len(bottoms)} bottoms")
    if param.coeff and _OPERATIONS[param.operation] == "PROD":
        raise ModelError(f"{layer}: coeff belongs to SUM, not to PROD")
    return [bottoms[0]]


@register("Eltwise", _eltwise_shapes, bottoms=(2, MANY))
def eltwise(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.eltwise_param
    operation = _OPERATIONS[param.operation]
    terms = list(at.bottoms)
    if operation == "MAX":
        return [onnx.node("Max", terms)]
    if operation == "SUM":
        for place, coeff in enumerate(param.coeff):
            if coeff != 1:
                terms[place] = onnx.node("Mul", [terms[place], onnx.scalar(coeff)])
    op = "Mul" if operation == "PROD" else "Add"
    return [reduce(lambda one, other: onnx.node(op, [one, other]), terms)]
