"""Convolution. Rules of sizes: base_conv_layer.cpp and conv_layer.cpp of Caffe 1.0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import MANY, Builder, Lowered, axis_of, cannot, register


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
            raise ModelError(f"{layer}: {many} stands {len(values)} times for {axes} spatial axes")
        return tuple(values * axes if len(values) == 1 else values)

    out = Window(
        setting("kernel_size", "kernel", None),
        setting("stride", "stride", 1),
        setting("pad", "pad", 0),
        setting("dilation", "", 1),
    )
    if min(out.kernel + out.stride + out.dilation) < 1:
        raise ModelError(f"{layer}: kernel, stride and dilation must be at least 1")
    return out


def _geometry(layer: Layer, bottom: Shape) -> tuple[int, Window]:
    axis = axis_of(layer, layer.param.convolution_param.axis, len(bottom))
    if axis != 1 or len(bottom) < 3:
        raise cannot(layer, f"a convolution along axis {axis} of a blob of {len(bottom)} axes")
    return bottom[1], window(layer, len(bottom) - 2)


def _shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    outputs = layer.param.convolution_param.num_output
    tops = []
    for bottom in bottoms:
        _, at = _geometry(layer, bottom)
        if bottom[1:] != bottoms[0][1:]:
            raise ModelError(f"{layer}: its bottoms differ in shape")
        spatial = []
        for size, kernel, stride, pad, dilation in zip(
            bottom[2:], at.kernel, at.stride, at.pad, at.dilation, strict=True
        ):
            room = size + 2 * pad - (dilation * (kernel - 1) + 1)
            if room < 0:
                raise ModelError(f"{layer}: its kernel is larger than its padded bottom {bottom}")
            spatial.append(room // stride + 1)
        tops.append((bottom[0], outputs, *spatial))
    return tops


def _params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.convolution_param
    channels, at = _geometry(layer, bottoms[0])
    if param.num_output < 1 or param.group < 1 or channels % param.group or param.num_output % param.group:
        raise ModelError(
            f"{layer}: group {param.group} must divide {channels} input channels and {param.num_output} outputs"
        )
    weight: Shape = (param.num_output, channels // param.group, *at.kernel)
    return [weight, (param.num_output,)] if param.bias_term else [weight]


@register("Convolution", _shapes, _params, bottoms=(1, MANY), tops=(1, MANY))
def lower(onnx: Builder, at: Lowered) -> list[str]:
    win = window(at.layer, len(at.shapes[0]) - 2)
    arrays = [onnx.constant(array) for array in at.weights]
    return [
        onnx.node(
            "Conv",
            [bottom, *arrays],
            kernel_shape=win.kernel,
            strides=win.stride,
            pads=win.pad * 2,
            dilations=win.dilation,
            group=at.layer.param.convolution_param.group,
        )
        for bottom in at.bottoms
    ]
