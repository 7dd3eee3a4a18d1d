"""Another size of a net's input than its definition has, as `net.blobs[...].reshape(...); net.reshape()` in pycaffe.

Caffe makes the weights for the size in the definition, so a layer whose weights depend on it takes no other size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import INPUT, Layer, Shape, Step
from featd.net.shapes import Shapes, infer

_KEYS: Final = "preprocess.size and preprocess.crop ([height, width])"


def resized(
    steps: Sequence[Step], own: Shapes, blob: str, size: tuple[int, int], source: str
) -> tuple[tuple[Step, ...], Shapes]:
    """The steps with an input `blob` of `size` (height, width), and their shapes for one image. `own`: those for the
    definition's size. ModelError names the layer that does not take another size."""
    shape = own.blobs[blob]
    assert shape is not None  # an input's shape is known
    was, now = _text(shape[2:]), _text(size)
    made = tuple(
        replace(step, layer=_input(step.layer, blob, size)) if step.layer.type == INPUT else step
        for step in steps
    )
    try:
        found = infer(made, 1)
    except ModelError as error:
        raise ModelError(
            f"{source}: {error}: its input is {now} by {_KEYS}, and {was} in the definition"
        ) from None
    for step in made:
        before, after = own.params[step.layer.key], found.params[step.layer.key]
        if before != after:
            raise ModelError(
                f"{source}: {step.layer} {_misfit(step.layer, before or [], after or [])}: an input of {now} does not "
                f"fit its weights: set {_KEYS} for an input of {was}, or ask for blobs before this layer"
            )
    return made, found


def _input(layer: Layer, blob: str, size: tuple[int, int]) -> Layer:
    param = schema.new("LayerParameter")
    param.CopyFrom(layer.param)
    shapes = param.input_param.shape
    for at, top in enumerate(layer.tops):
        if top == blob:
            dims = shapes[at if len(shapes) > 1 else 0].dim
            dims[2], dims[3] = size
    return replace(layer, param=param)


def _misfit(layer: Layer, before: list[Shape], after: list[Shape]) -> str:
    if layer.type == "InnerProduct":
        outputs = layer.param.inner_product_param.num_output
        expected, given = (math.prod(shapes[0]) // outputs for shapes in (before, after))
        return f"takes {expected:,} inputs, not {given:,}"
    shapes = next((pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]), ((), ()))
    return f"has weights of {_text(shapes[0])}, not {_text(shapes[1])}"


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
