"""InnerProduct (fully connected) and Embed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.registry import Builder, Lowered, axis_of, register


def _shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.inner_product_param
    axis = axis_of(layer, param.axis, len(bottoms[0]))
    return [(*bottoms[0][:axis], param.num_output)]


def _params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.inner_product_param
    if param.num_output < 1:
        raise ModelError(f"{layer}: num_output must be at least 1")
    inputs = math.prod(bottoms[0][axis_of(layer, param.axis, len(bottoms[0])) :])
    weight: Shape = (inputs, param.num_output) if param.transpose else (param.num_output, inputs)
    return [weight, (param.num_output,)] if param.bias_term else [weight]


@register("InnerProduct", _shapes, _params)
def lower(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.inner_product_param
    bottom = at.shapes[0]
    axis = axis_of(at.layer, param.axis, len(bottom))
    if axis == 1:
        flat = onnx.node("Flatten", [at.bottoms[0]], axis=1)
        arrays = [onnx.constant(array) for array in at.weights]
        return [onnx.node("Gemm", [flat, *arrays], transB=0 if param.transpose else 1)]
    flat = onnx.reshape(at.bottoms[0], (*bottom[:axis], math.prod(bottom[axis:])), at.fixed[0])
    weight = at.weights[0] if param.transpose else np.ascontiguousarray(at.weights[0].T)
    top = onnx.node("MatMul", [flat, onnx.constant(weight)])
    if param.bias_term:
        top = onnx.node("Add", [top, onnx.constant(at.weights[1])])
    return [top]


def _embed_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [(*bottoms[0], layer.param.embed_param.num_output)]


def _embed_params(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.embed_param
    if param.num_output < 1 or param.input_dim < 1:
        raise ModelError(f"{layer}: num_output and input_dim must be at least 1")
    weight: Shape = (param.input_dim, param.num_output)
    return [weight, (param.num_output,)] if param.bias_term else [weight]


@register("Embed", _embed_shapes, _embed_params)
def embed(onnx: Builder, at: Lowered) -> list[str]:
    """A row of the weights for each number, which is truncated to an integer. A number without a row is an error; Caffe
    reads beyond its weights."""
    rows = onnx.node("Cast", at.bottoms, to=7)
    # ONNX would count negative rows from the end.
    negative = onnx.node("Less", [rows, onnx.constant(np.array(0))])
    beyond = onnx.constant(np.array(at.layer.param.embed_param.input_dim))
    rows = onnx.node("Where", [negative, beyond, rows])
    top = onnx.node("Gather", [onnx.constant(at.weights[0]), rows], axis=0)
    if len(at.weights) > 1:
        top = onnx.node("Add", [top, onnx.constant(at.weights[1])])
    return [top]
