"""Convolution and Deconvolution. Rules of sizes: base_conv_layer.cpp, conv_layer.cpp, deconv_layer.cpp of Caffe 1.0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, Weights, axis_of, cannot, register

_MOST_COLUMNS: Final = 2**31 - 1
_MOST_SETTING: Final = 2**20
_MOST_BYTES: Final = 48 << 20
"""Of the weights of one convolution in ONNX. Few nets have a larger one: those made of nets with fully connected
layers."""
_ARRANGED: Final = 16
_STEP: Final = 64
"""Outputs that ONNX Runtime computes together, at most."""


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, stride, pad and dilation, one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]


def window(layer: Layer, axes: int) -> Window:
    """The window of a convolution over `axes` spatial axes."""
    param = layer.param.convolution_param

    def setting(many: str, suffix: str, default: int | None) -> tuple[int, ...]:
        values = list(getattr(param, many))
        pair = (f"{suffix}_h", f"{suffix}_w")
        if suffix and (param.HasField(pair[0]) or param.HasField(pair[1])):
            if values or axes != 2:
                raise ModelError(
                    f"{layer}: write either {many} or {pair[0]} and {pair[1]}, the latter for 2-D only"
                )
            return (getattr(param, pair[0]), getattr(param, pair[1]))
        if not values and default is not None:
            values = [default]
        if len(values) not in (1, axes):
            raise ModelError(f"{layer}: {many} is given {len(values)} times for {axes} spatial axes")
        return tuple(values * axes if len(values) == 1 else values)

    out = Window(
        setting("kernel_size", "kernel", None),
        setting("stride", "stride", 1),
        setting("pad", "pad", 0),
        setting("dilation", "", 1),
    )
    if min(out.kernel + out.stride + out.dilation) < 1:
        raise ModelError(f"{layer}: kernel, stride and dilation must be at least 1")
    if max(out.kernel + out.stride + out.pad + out.dilation) > _MOST_SETTING:
        raise ModelError(f"{layer}: a kernel, stride, pad or dilation is larger than any picture")
    return out


def _geometry(layer: Layer, bottom: Shape) -> tuple[int, Window]:
    """The axis of the channels and the window over all axes after it. The axes before it count as images."""
    axis = axis_of(layer, layer.param.convolution_param.axis, len(bottom))
    if axis == len(bottom) - 1:
        raise cannot(layer, f"a convolution along axis {axis} of a blob of {len(bottom)} axes")
    return axis, window(layer, len(bottom) - axis - 1)


def _shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    outputs = layer.param.convolution_param.num_output
    axis, at = _geometry(layer, bottoms[0])
    for bottom in bottoms[1:]:
        if bottom != bottoms[0]:
            raise ModelError(f"{layer}: its bottoms differ in shape")
    bottom, spatial = bottoms[0], []
    for size, kernel, stride, pad, dilation in zip(
        bottom[axis + 1 :], at.kernel, at.stride, at.pad, at.dilation, strict=True
    ):
        extent = dilation * (kernel - 1) + 1
        if layer.type == "Deconvolution":
            spatial.append(stride * (size - 1) + extent - 2 * pad)
            if spatial[-1] < 1:
                raise ModelError(f"{layer}: its pad is larger than what it makes of its bottom {bottom}")
        elif size + 2 * pad < extent:
            raise ModelError(f"{layer}: its kernel is larger than its padded bottom {bottom}")
        else:
            spatial.append((size + 2 * pad - extent) // stride + 1)
    _check_room(layer, bottom[axis:], tuple(spatial), at)
    return [(*bottom[:axis], outputs, *spatial)] * len(bottoms)


def _check_room(layer: Layer, bottom: Shape, spatial: Shape, at: Window) -> None:
    """ModelError where Caffe's im2col buffer of one image exceeds an int. `bottom`: its shape without the batch."""
    deconvolution = layer.type == "Deconvolution"
    channels = layer.param.convolution_param.num_output if deconvolution else bottom[0]
    places = bottom[1:] if deconvolution else spatial
    if channels * math.prod(at.kernel) * math.prod(places) > _MOST_COLUMNS:
        raise ModelError(
            f"{layer}: its windows {at.kernel} over {bottom} hold more numbers than Caffe can count"
        )
    padded = (size + 2 * pad for size, pad in zip(bottom[1:], at.pad, strict=True))
    if not deconvolution and math.prod(padded) * bottom[0] > _MOST_COLUMNS:
        raise ModelError(f"{layer}: its pad {at.pad} is far larger than its bottom {bottom}")


def _params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.convolution_param
    axis, at = _geometry(layer, bottoms[0])
    channels = bottoms[0][axis]
    if param.num_output < 1 or param.group < 1 or channels % param.group or param.num_output % param.group:
        raise ModelError(
            f"{layer}: group {param.group} must divide {channels} input channels and {param.num_output} outputs"
        )
    outer, inner = param.num_output, channels
    if layer.type == "Deconvolution":
        outer, inner = inner, outer
    weight: Shape = (outer, inner // param.group, *at.kernel)
    return [weight, (param.num_output,)] if param.bias_term else [weight]


def _parts(at: Lowered) -> list[Weights]:
    """The arrays of a large Convolution in parts that share its outputs: ONNX Runtime arranges the weights of each
    convolution anew, and needs them four times while it does. Its sums stay the same: each is of one output alone."""
    weight, outputs = at.weights[0], len(at.weights[0])
    whole = at.layer.type != "Convolution" or at.layer.param.convolution_param.group > 1
    # Other numbers of channels are not arranged anew.
    if whole or outputs % _ARRANGED or weight.shape[1] % _ARRANGED or weight.nbytes <= _MOST_BYTES:
        return [at.weights]
    step = max(_MOST_BYTES // weight[0].nbytes // _STEP, 1) * _STEP
    return [[array[first : first + step] for array in at.weights] for first in range(0, outputs, step)]


@register("Deconvolution", _shapes, _params, bottoms=(1, MANY), tops=(1, MANY))
@register("Convolution", _shapes, _params, bottoms=(1, MANY), tops=(1, MANY))
def lower(onnx: Builder, at: Lowered) -> list[str]:
    axis, win = _geometry(at.layer, at.shapes[0])
    parts = [[onnx.constant(array) for array in arrays] for arrays in _parts(at)]
    op = "Conv" if at.layer.type == "Convolution" else "ConvTranspose"
    tops = []
    for bottom, shape, top in zip(at.bottoms, at.shapes, at.tops, strict=True):
        # ONNX has its channels along axis 1.
        images = bottom if axis == 1 else onnx.reshape(bottom, (-1, *shape[axis:]), fixed=True)
        of_parts = [
            onnx.node(
                op,
                [images, *arrays],
                kernel_shape=win.kernel,
                strides=win.stride,
                pads=win.pad * 2,
                dilations=win.dilation,
                group=at.layer.param.convolution_param.group,
            )
            for arrays in parts
        ]
        made = of_parts[0] if len(of_parts) == 1 else onnx.node("Concat", of_parts, axis=1)
        tops.append(made if axis == 1 else onnx.reshape(made, (-1, *top[1:]), fixed=True))
    return tops
