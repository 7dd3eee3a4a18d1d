"""Pooling. Sizes are rounded up, the last window is clipped, AVE divides by the window clipped to the padding.

All three are Caffe's own (pooling_layer.cpp) and differ from ONNX's; `geometry` is where they are decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, cannot, register

_METHODS = {number: name for name, number in schema.ENUMS["PoolingParameter.PoolMethod"].items()}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Two entries each, for height and width. `over`: by how much the last window passes the bottom's far edge
    (negative where it stays inside)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    out: tuple[int, int]
    over: tuple[int, int]
    empty: bool
    """Whether a window lies wholly outside: Caffe then gives -FLT_MAX or a division by zero."""


def geometry(layer: Layer, bottom: Shape) -> Geometry:
    """The windows over a bottom (n, c, h, w)."""
    if len(bottom) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottom}")
    param = layer.param.pooling_param

    def pair(one: str) -> tuple[int, int]:
        two = (f"{one.removesuffix('_size')}_h", f"{one.removesuffix('_size')}_w")
        if param.HasField(two[0]) or param.HasField(two[1]):
            if param.HasField(one):
                raise ModelError(f"{layer}: write either {one} or {two[0]} and {two[1]}")
            return (getattr(param, two[0]), getattr(param, two[1]))
        return (getattr(param, one), getattr(param, one))

    size = (bottom[2], bottom[3])
    kernel = size if param.global_pooling else pair("kernel_size")
    stride, pad = pair("stride"), pair("pad")
    if min(kernel + stride) < 1:
        raise ModelError(f"{layer}: kernel and stride must be at least 1")
    if param.global_pooling and (pad != (0, 0) or stride != (1, 1)):
        raise ModelError(f"{layer}: global_pooling allows neither pad nor stride")
    if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
        raise ModelError(f"{layer}: its pad {pad} must be smaller than its kernel {kernel}")
    floor = param.round_mode == schema.ENUMS["PoolingParameter.RoundMode"]["FLOOR"] or not param.ceil_mode
    out, over, empty = [], [], False
    for axis in (0, 1):
        room = size[axis] + 2 * pad[axis] - kernel[axis]
        if room < 0:
            raise ModelError(f"{layer}: its kernel {kernel} is larger than its padded bottom {bottom}")
        count = (room // stride[axis] if floor else -(-room // stride[axis])) + 1
        # Only a padded pooling drops a last window that would start in the padding.
        if pad != (0, 0) and (count - 1) * stride[axis] >= size[axis] + pad[axis]:
            count -= 1
        start = (count - 1) * stride[axis] - pad[axis]
        empty = empty or start >= size[axis]
        out.append(count)
        over.append(start + kernel[axis] - size[axis])
    return Geometry(kernel, stride, pad, (out[0], out[1]), (over[0], over[1]), empty)


def _shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    at = geometry(layer, bottoms[0])
    top = (*bottoms[0][:2], *at.out)
    return [top] * len(layer.tops)


@register("Pooling", _shapes, tops=(1, 2))
def lower(onnx: Builder, at: Lowered) -> list[str]:
    method = _METHODS[at.layer.param.pooling_param.pool]
    windows = geometry(at.layer, at.shapes[0])
    if len(at.layer.tops) > 1:
        raise cannot(at.layer, "a second top (the mask of MAX pooling)")
    if method == "STOCHASTIC":
        raise cannot(at.layer, "STOCHASTIC pooling")
    if windows.empty:
        raise ModelError(
            f"{at.layer}: a window lies wholly outside its bottom {at.shapes[0]}: mend stride or kernel"
        )
    if windows.out == (1, 1) and windows.pad == (0, 0) and windows.over == (0, 0):
        return [onnx.node("GlobalMaxPool" if method == "MAX" else "GlobalAveragePool", at.bottoms)]
    bottom, begin = at.bottoms[0], windows.pad
    end = (max(windows.over[0], 0), max(windows.over[1], 0))
    extra: dict[str, int] = {}
    if method == "AVE":
        # Padding counts as zeros, what lies beyond it does not count: two kinds of padding in one window, of
        # which ONNX knows one at a time. So where windows pass the padding, the zeros are laid out first.
        passes = end[0] > begin[0] or end[1] > begin[1]
        if passes and begin != (0, 0):
            pads = np.array([0, 0, *begin, 0, 0, *begin], np.int64)
            bottom = onnx.node("Pad", [bottom, onnx.constant(pads)])
            end = (max(windows.over[0] - begin[0], 0), max(windows.over[1] - begin[1], 0))
            begin = (0, 0)
        extra["count_include_pad"] = 0 if passes else 1
    return [
        onnx.node(
            "MaxPool" if method == "MAX" else "AveragePool",
            [bottom],
            kernel_shape=windows.kernel,
            strides=windows.stride,
            pads=begin + end,
            **extra,
        )
    ]
