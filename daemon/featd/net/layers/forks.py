"""Layers that only branches of Caffe have: BN, Flip, Reorg, SeLU, and Unpooling by the mask of a MAX pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer, Shape
from featd.net.layers.affine import bn
from featd.net.layers.move import pick, unpool
from featd.net.layers.registry import Builder, Lowered, register

_LEARN = schema.ENUMS["BNParameter.BNMode"]["LEARN"]

_MAX = schema.ENUMS["UnpoolingParameter.UnpoolMethod"]["MAX"]


def _four(layer: Layer, bottom: Shape) -> Shape:
    if len(bottom) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottom}")
    return bottom


def _segnets(layer: Layer) -> bool:
    param = layer.param.bn_param
    return any(map(param.HasField, ("bn_mode", "scale_filler", "shift_filler")))


def _bn_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    channels = _four(layer, bottoms[0])[1]
    if _segnets(layer) and layer.param.bn_param.bn_mode == _LEARN:
        raise ModelError(
            f"{layer}: takes mean and variance from the batch: take the net for testing, with bn_mode: INFERENCE"
        )
    return [(1, channels, 1, 1)] * (2 if _segnets(layer) else 4)


@register("BN", params=_bn_params, in_place=True)
def batch_norm(onnx: Builder, at: Lowered) -> list[str]:
    """PSPNet's, with slope, bias, mean and variance, or SegNet's, with scale and shift."""
    return bn(at.layer, at.shapes[0][1], at.weights).lower(onnx, at)


@register("SeLu", in_place=True)
@register("SeLU", in_place=True)
def selu(onnx: Builder, at: Lowered) -> list[str]:
    """lambda * x above zero, lambda * alpha * (exp(x) - 1) below."""
    param = at.layer.param.selu_param
    return [onnx.node("Selu", at.bottoms, alpha=param.alpha, gamma=getattr(param, "lambda"))]


def _flip_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [_four(layer, bottoms[0])]


@register("Flip", _flip_shapes)
def flip(onnx: Builder, at: Lowered) -> list[str]:
    tensor, param = at.bottoms[0], at.layer.param.flip_param
    for axis, flips in ((2, param.flip_height), (3, param.flip_width)):
        if flips:
            tensor = pick(onnx, tensor, axis, np.arange(at.shapes[0][axis])[::-1])
    return [tensor]


def _reorg_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    images, channels, height, width = _four(layer, bottoms[0])
    stride, reverse = layer.param.reorg_param.stride, layer.param.reorg_param.reverse
    # The order of the numbers is that of a blob of fewer channels, also where the top has more.
    if stride < 1 or channels % stride**2 or (not reverse and (height % stride or width % stride)):
        raise ModelError(f"{layer}: stride {stride} does not divide its bottom {bottoms[0]}")
    if reverse:
        return [(images, channels // stride**2, height * stride, width * stride)]
    return [(images, channels * stride**2, height // stride, width // stride)]


@register("Reorg", _reorg_shapes)
def reorg(onnx: Builder, at: Lowered) -> list[str]:
    """As darknet's reorg_cpu: a fixed order of all numbers of an image, whatever their channel."""
    stride, (_, channels, height, width) = at.layer.param.reorg_param.stride, at.shapes[0]
    wide = np.arange(channels * height * width).reshape(channels // stride**2, height, stride, width, stride)
    order = wide.transpose(2, 4, 0, 1, 3).ravel()
    if at.layer.param.reorg_param.reverse:
        order = np.argsort(order)
    flat = onnx.node("Flatten", [at.bottoms[0]], axis=1)
    return [onnx.reshape(pick(onnx, flat, 1, order), at.tops[0], at.fixed[0])]


def _unpooling_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param, bottom = layer.param.unpooling_param, _four(layer, bottoms[0])
    if param.unpool != _MAX:
        raise ModelError(f"{layer}: featd runs only MAX unpooling")
    if bottoms[1] != bottom:
        raise ModelError(f"{layer}: its mask {bottoms[1]} has another shape than its bottom {bottom}")
    made = []
    for axis, end in ((2, "_h"), (3, "_w")):
        kernel, stride, pad, size = (
            getattr(param, name + end) or getattr(param, whole)
            for name, whole in (
                ("kernel", "kernel_size"), ("stride", "stride"), ("pad", "pad"), ("unpool", "unpool_size")
            )
        )  # fmt: skip
        made.append(size or (bottom[axis] - 1) * stride + kernel - 2 * pad)
    return [(*bottom[:2], *made)]


@register("Unpooling", _unpooling_shapes, bottoms=(2, 2))
def unpooling(onnx: Builder, at: Lowered) -> list[str]:
    return [unpool(onnx, at)]
