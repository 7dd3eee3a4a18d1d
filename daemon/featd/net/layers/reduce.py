"""Reduction and ArgMax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, axis_of, register

_OPERATIONS = {number: name for name, number in schema.ENUMS["ReductionParameter.ReductionOp"].items()}
_ONNX = {"ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}


def _reduction_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [bottoms[0][: axis_of(layer, layer.param.reduction_param.axis, len(bottoms[0]))]]


@register("Reduction", _reduction_shapes)
def reduction(onnx: Builder, at: Lowered) -> list[str]:
    """All axes from `axis` on become one number."""
    param, bottom = at.layer.param.reduction_param, at.shapes[0]
    kept = at.tops[0]
    rows = onnx.reshape(at.bottoms[0], (*kept, math.prod(bottom[len(kept) :])), at.fixed[0])
    operation = _OPERATIONS[param.operation]
    if operation == "SUM":
        top = onnx.node("ReduceSum", [rows, onnx.constant(np.array([len(kept)], np.int64))], keepdims=0)
    else:
        top = onnx.node(_ONNX[operation], [rows], axes=[len(kept)], keepdims=0)
    return [top if param.coeff == 1 else onnx.node("Mul", [top, onnx.scalar(param.coeff)])]


def _argmax_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param, bottom = layer.param.argmax_param, bottoms[0]
    if param.HasField("axis"):
        axis = axis_of(layer, param.axis, len(bottom))
        top = [*bottom[:axis], param.top_k, *bottom[axis + 1 :]]
        most = bottom[axis]
    else:
        top = [bottom[0], 2 if param.out_max_val else 1, param.top_k, *(1,) * (len(bottom) - 3)]
        most = math.prod(bottom[1:])
    if not 1 <= param.top_k <= most:
        raise ModelError(f"{layer}: top_k {param.top_k} does not fit the {most} entries it looks at")
    return [tuple(top)]


@register("ArgMax", _argmax_shapes)
def argmax(onnx: Builder, at: Lowered) -> list[str]:
    """The `top_k` largest, in descending order; among equal ones, the higher index comes first."""
    param, bottom = at.layer.param.argmax_param, at.shapes[0]
    tensor, axis = at.bottoms[0], 1
    if param.HasField("axis"):
        axis = axis_of(at.layer, param.axis, len(bottom))
        size = bottom[axis]
    else:
        size = math.prod(bottom[1:])
        tensor = onnx.reshape(tensor, (bottom[0], size), at.fixed[0])
    rank = len(bottom) if param.HasField("axis") else 2
    compared = _after_nan(onnx, tensor, axis, size, rank) if at.doubtful and param.top_k == 1 else tensor
    # ONNX puts the lower index first, so the order is reversed.
    order = onnx.constant(np.arange(size - 1, -1, -1, dtype=np.int64))
    mirrored = onnx.node("Gather", [compared, order], axis=axis)
    values, mirrored_places = onnx.nodes(
        "TopK",
        [mirrored, onnx.constant(np.array([param.top_k], np.int64))],
        2,
        axis=axis,
        largest=1,
        sorted=1,
    )
    found = onnx.node("Sub", [onnx.constant(np.array(size - 1)), mirrored_places])
    places = onnx.node("Cast", [found], to=1)
    if at.doubtful and param.top_k == 1:
        values = onnx.node("GatherElements", [tensor, found], axis=axis)
    elif at.doubtful:
        # With NaN, what Caffe gives depends on how its library sorts: NaN, so that the image has no vector.
        none = onnx.node("Cast", [onnx.node("IsNaN", [tensor])], to=1)
        any_ = onnx.node("Cast", [onnx.node("ReduceMax", [none], axes=[axis], keepdims=1)], to=9)
        values, places = (onnx.node("Where", [any_, onnx.scalar(np.nan), one]) for one in (values, places))
    if param.HasField("axis"):
        return [values if param.out_max_val else places]
    top = onnx.node("Concat", [places, values], axis=1) if param.out_max_val else places
    return [onnx.reshape(top, at.tops[0], at.fixed[0])]


def _after_nan(onnx: Builder, tensor: str, axis: int, size: int, rank: int) -> str:
    """A tensor with minus infinity up to the last NaN along an axis, for ArgMax: Caffe goes through the numbers in
    order, and takes NaN in place of whatever it holds, and whatever comes next in place of NaN."""
    numbered = np.arange(1, size + 1, dtype=np.float32).reshape([-1] + [1] * (rank - axis - 1))
    none = onnx.node(
        "Mul", [onnx.node("Cast", [onnx.node("IsNaN", [tensor])], to=1), onnx.constant(numbered)]
    )
    last = onnx.node("ReduceMax", [none], axes=[axis], keepdims=1)
    return onnx.node(
        "Where", [onnx.node("Greater", [onnx.constant(numbered), last]), tensor, onnx.scalar(-np.inf)]
    )
