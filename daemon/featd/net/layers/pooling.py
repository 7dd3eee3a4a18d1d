"""Pooling and SPP. Sizes are rounded up, the last window is clipped, AVE divides by the window clipped to the padding.

All three are Caffe's own (pooling_layer.cpp, spp_layer.cpp) and differ from ONNX's; `windows` decides
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, register

_METHODS = {number: name for name, number in schema.ENUMS["PoolingParameter.PoolMethod"].items()}
_LOWEST = float(np.finfo(np.float32).min)
_LEAST = float(np.finfo(np.float32).tiny)
_MOST_PADDED = 1 << 28

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Windows:
    """Two entries each, for height and width."""

    size: Pair
    kernel: Pair
    stride: Pair
    pad: Pair
    out: Pair
    over: Pair
    """By how much the last window passes the bottom's far edge; negative where it stays inside."""
    outside: tuple[bool, bool]
    """Whether the last window is completely beyond the far edge. This happens only without padding."""

    @property
    def empty(self) -> bool:
        """Whether a window may hold nothing of the bottom."""
        far = any(over >= kernel for over, kernel in zip(self.over, self.kernel, strict=True))
        return far or any(self.outside)

    def max(self, onnx: Builder, bottom: str) -> str:
        end = (max(self.over[0], 0), max(self.over[1], 0))
        if self.empty:
            # Caffe leaves -FLT_MAX where a window holds nothing.
            pads = np.array([0, 0, *self.pad, 0, 0, *end], np.int64)
            bottom = onnx.node("Pad", [bottom, onnx.constant(pads), onnx.scalar(_LOWEST)])
            return self._pool(onnx, "MaxPool", bottom, (0, 0), (0, 0))
        return self._pool(onnx, "MaxPool", bottom, self.pad, end)

    def average(self, onnx: Builder, bottom: str) -> str:
        if not any(self.outside):
            return self.plain_average(onnx, bottom)
        # An empty sum divided by a size that is not zero: zeros.
        inside = self._without_outside()
        more = [self.out[axis] - inside.out[axis] for axis in (0, 1)]
        pads = np.array([0, 0, 0, 0, 0, 0, *more], np.int64)
        return onnx.node("Pad", [inside.plain_average(onnx, bottom), onnx.constant(pads)])

    def plain_average(self, onnx: Builder, bottom: str) -> str:
        end = (max(self.over[0], 0), max(self.over[1], 0))
        top = self._pool(onnx, "AveragePool", bottom, self.pad, end, count_include_pad=1)
        # Padding counts as zeros, and what is beyond it does not count: two kinds of padding in one window, of which
        # ONNX supports one at a time. (A Pad before it would work, but onnxruntime 1.19 fuses the two incorrectly.)
        if end[0] <= self.pad[0] and end[1] <= self.pad[1]:
            return top
        high, wide = (self._counted(axis) for axis in (0, 1))
        share = math.prod(self.kernel) / np.outer(high, wide)
        return onnx.node("Mul", [top, onnx.constant(share.astype(np.float32))])

    def _counted(self, axis: int) -> list[int]:
        """How many rows or columns of each window lie within the padding."""
        pad, edge = self.pad[axis], self.size[axis] + self.pad[axis]
        starts = (at * self.stride[axis] - pad for at in range(self.out[axis]))
        return [min(start + self.kernel[axis], edge) - start for start in starts]

    def weighted(self, onnx: Builder, bottom: str) -> str:
        """What STOCHASTIC pooling expects in the TEST phase: the mean of a window, its numbers their own weights
        (StoPoolForwardTest; over means instead of sums, which divide by the same). A window of zeros gives 0."""
        squares = self.average(onnx, onnx.node("Mul", [bottom, bottom]))
        weights = onnx.node("Add", [self.average(onnx, bottom), onnx.scalar(_LEAST)])
        return onnx.node("Div", [squares, weights])

    def _without_outside(self) -> Windows:
        out = (self.out[0] - self.outside[0], self.out[1] - self.outside[1])
        over = (
            self.over[0] - self.stride[0] * self.outside[0],
            self.over[1] - self.stride[1] * self.outside[1],
        )
        return Windows(self.size, self.kernel, self.stride, self.pad, out, over, (False, False))

    def _pool(self, onnx: Builder, op: str, bottom: str, begin: Pair, end: Pair, **extra: int) -> str:
        return onnx.node(
            op, [bottom], kernel_shape=self.kernel, strides=self.stride, pads=begin + end, **extra
        )


def windows(layer: Layer, bottom: Shape, kernel: Pair, stride: Pair, pad: Pair, floor: bool) -> Windows:
    """The windows over a bottom (n, c, h, w). ModelError where Caffe would abort."""
    size = (bottom[2], bottom[3])
    if min(kernel + stride) < 1:
        raise ModelError(f"{layer}: kernel and stride must be at least 1")
    if pad != (0, 0) and (pad[0] >= kernel[0] or pad[1] >= kernel[1]):
        raise ModelError(f"{layer}: its pad {pad} must be smaller than its kernel {kernel}")
    out, over, outside = [], [], []
    for axis in (0, 1):
        room = size[axis] + 2 * pad[axis] - kernel[axis]
        count = (room // stride[axis] if floor else -(-room // stride[axis])) + 1
        # Only a padded pooling drops a last window that would start in the padding.
        if pad != (0, 0) and (count - 1) * stride[axis] >= size[axis] + pad[axis]:
            count -= 1
        if count < 1:
            raise ModelError(f"{layer}: its kernel {kernel} is larger than its padded bottom {bottom}")
        start = (count - 1) * stride[axis] - pad[axis]
        outside.append(start >= size[axis])
        out.append(count)
        over.append(start + kernel[axis] - size[axis])
    padded = bottom[1] * math.prod(s + p + max(o, 0) for s, p, o in zip(size, pad, over, strict=True))
    if padded > max(_MOST_PADDED, 2 * math.prod(bottom[1:])):
        raise ModelError(
            f"{layer}: with its kernel {kernel} and pad {pad}, its bottom {bottom} would be padded to more than"
            f" {_MOST_PADDED:,} numbers"
        )
    return Windows(size, kernel, stride, pad, (out[0], out[1]), (over[0], over[1]), (outside[0], outside[1]))


def average_lrn(layer: Layer, bottom: Shape, size: int) -> Windows:
    """The windows of LRN WITHIN_CHANNEL."""
    pad = (size - 1) // 2
    return windows(layer, bottom, (size, size), (1, 1), (pad, pad), False)


def _geometry(layer: Layer, bottom: Shape) -> Windows:
    if len(bottom) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottom}")
    param = layer.param.pooling_param

    def pair(one: str) -> Pair:
        two = (f"{one.removesuffix('_size')}_h", f"{one.removesuffix('_size')}_w")
        held = [param.HasField(name) for name in two]
        if any(held):
            if param.HasField(one) or not all(held):
                raise ModelError(f"{layer}: write either {one} or {two[0]} and {two[1]}")
            return (getattr(param, two[0]), getattr(param, two[1]))
        return (getattr(param, one), getattr(param, one))

    stride, pad = pair("stride"), pair("pad")
    if param.global_pooling:
        if any(param.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w")):
            raise ModelError(f"{layer}: global_pooling allows no kernel")
        if pad != (0, 0) or stride != (1, 1):
            raise ModelError(f"{layer}: global_pooling allows neither pad nor stride")
    kernel = (bottom[2], bottom[3]) if param.global_pooling else pair("kernel_size")
    _no_pad_if_stochastic(layer, param, pad)
    floor = param.round_mode == schema.ENUMS["PoolingParameter.RoundMode"]["FLOOR"] or not param.ceil_mode
    return windows(layer, bottom, kernel, stride, pad, floor)


def _no_pad_if_stochastic(layer: Layer, param: schema.Message, pad: Pair) -> None:
    if _METHODS[param.pool] == "STOCHASTIC" and pad != (0, 0):
        raise ModelError(f"{layer}: STOCHASTIC pooling allows no pad")


def _shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    at = _geometry(layer, bottoms[0])
    if _METHODS[layer.param.pooling_param.pool] == "AVE":
        ends = [(at.out[axis] - 1) * at.stride[axis] == at.size[axis] for axis in (0, 1)]
        if any(outside and end for outside, end in zip(at.outside, ends, strict=True)):
            raise ModelError(
                f"{layer}: its last window begins where its bottom {bottoms[0]} ends: Caffe divides zero by zero "
                "there; mend stride or kernel"
            )
    top = (*bottoms[0][:2], *at.out)
    return [top] * len(layer.tops)


@register("Pooling", _shapes, tops=(1, 2))
def lower(onnx: Builder, at: Lowered) -> list[str]:
    """A second top is the mask of MAX pooling: where in its plane each maximum was."""
    method = _METHODS[at.layer.param.pooling_param.pool]
    if at.read[1:] == (True,) and method == "MAX":
        bottom, windows = _comparable(onnx, at, method), _geometry(at.layer, at.shapes[0])
        end = (max(windows.over[0], 0), max(windows.over[1], 0))
        if not windows.empty:
            top, place = onnx.nodes(
                "MaxPool",
                [bottom],
                2,
                kernel_shape=windows.kernel,
                strides=windows.stride,
                pads=windows.pad + end,
            )
            plane = onnx.constant(np.array(math.prod(windows.size), np.int64))
            mask = onnx.node("Cast", [onnx.node("Mod", [place, plane])], to=TensorProto.FLOAT)
            if at.doubtful:
                # Caffe's mask says -1 where no number of the window has won.
                won = onnx.node("Greater", [top, onnx.scalar(_LOWEST)])
                mask = onnx.node("Where", [won, mask, onnx.scalar(-1.0)])
            return [top, mask]
    return [_pooled(onnx, _comparable(onnx, at, method), _geometry(at.layer, at.shapes[0]), method)]


def _comparable(onnx: Builder, at: Lowered, method: str) -> str:
    """The bottom of MAX pooling as Caffe compares it: what is not greater than -FLT_MAX, NaN too, never wins."""
    bottom = at.bottoms[0]
    if not at.doubtful or method != "MAX":
        return bottom
    lowest = onnx.scalar(_LOWEST)
    return onnx.node("Where", [onnx.node("Greater", [bottom, lowest]), bottom, lowest])


def _pooled(onnx: Builder, bottom: str, at: Windows, method: str) -> str:
    if method == "STOCHASTIC":
        return at.weighted(onnx, bottom)
    if at.out == (1, 1) and at.pad == (0, 0) and at.kernel[0] >= at.size[0] and at.kernel[1] >= at.size[1]:
        return onnx.node("GlobalMaxPool" if method == "MAX" else "GlobalAveragePool", [bottom])
    return at.max(onnx, bottom) if method == "MAX" else at.average(onnx, bottom)


def _levels(layer: Layer, bottom: Shape) -> list[Windows]:
    height = layer.param.spp_param.pyramid_height
    if len(bottom) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottom}")
    if not 1 <= height <= 16:
        raise ModelError(f"{layer}: pyramid_height must be 1 to 16, is {height}")
    levels = []
    for level in range(height):
        bins = 2**level
        kernel = (-(-bottom[2] // bins), -(-bottom[3] // bins))
        pad = ((kernel[0] * bins - bottom[2] + 1) // 2, (kernel[1] * bins - bottom[3] + 1) // 2)
        _no_pad_if_stochastic(layer, layer.param.spp_param, pad)
        levels.append(windows(layer, bottom, kernel, kernel, pad, False))
    return levels


def _spp_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    levels, (images, channels) = _levels(layer, bottoms[0]), bottoms[0][:2]
    if len(levels) == 1:
        return [(images, channels, *levels[0].out)]
    return [(images, sum(channels * level.out[0] * level.out[1] for level in levels))]


@register("SPP", _spp_shapes)
def spp(onnx: Builder, at: Lowered) -> list[str]:
    """Poolings over 1, 4, 16, ... windows, flattened and put in a row; a pyramid of height 1 is not flattened."""
    method = _METHODS[at.layer.param.spp_param.pool]
    levels = _levels(at.layer, at.shapes[0])
    bottom = _comparable(onnx, at, method)
    tops = [_pooled(onnx, bottom, level, method) for level in levels]
    if len(tops) == 1:
        return tops
    return [onnx.node("Concat", [onnx.node("Flatten", [top], axis=1) for top in tops], axis=1)]
