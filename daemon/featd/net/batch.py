"""Batch sizes: definitions with a fixed one are made to take any; nets whose images must run alone are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import INPUT, Layer, Step, trace
from featd.net.layers.table import TYPES
from featd.net.shapes import Shapes, infer


def any_batch(layers: tuple[Layer, ...], source: str) -> tuple[Layer, ...]:
    """The layers without the file's own batch size where a setting contains it: as the first dim of a Reshape of
    a blob of that batch, and of constants. A batch of that size gives the same result, and now any size runs."""
    batch = next((_file_batch(layer) for layer in layers if layer.type == INPUT), 0)
    if batch < 1 or not any(layer.type in ("Reshape", "DummyData") for layer in layers):
        return layers
    shapes = infer(trace(layers, source).steps, batch, tolerant=True)
    return tuple(_any_batch(layer, batch, shapes) for layer in layers)


def _file_batch(layer: Layer) -> int:
    shapes = layer.param.input_param.shape
    return int(shapes[0].dim[0]) if len(shapes) > 0 and len(shapes[0].dim) > 0 else 0


def _any_batch(layer: Layer, batch: int, shapes: Shapes) -> Layer:
    if layer.type == "Reshape" and layer.param.reshape_param.axis == 0:
        dims = layer.param.reshape_param.shape.dim
        bottom = shapes.blobs.get(layer.bottoms[0]) if layer.bottoms else None
        if bottom and len(dims) > 0 and dims[0] == batch == bottom[0]:
            made = _copied(layer)
            made.param.reshape_param.shape.dim[0] = 0
            return made
    if layer.type == "DummyData" and batch > 1:
        dims = layer.param.dummy_data_param.shape[0].dim
        if len(dims) > 1 and dims[0] == batch:
            made = _copied(layer)
            made.param.dummy_data_param.shape[0].dim[0] = 1
            return made
    return layer


def _copied(layer: Layer) -> Layer:
    param = schema.new("LayerParameter")
    param.CopyFrom(layer.param)
    return replace(layer, param=param, rewritten=True)


def one_by_one(steps: Sequence[Step], one: Shapes, depends: set[int]) -> str | None:
    """Why the images of a batch cannot run together, or None. `one`: the shapes of one image; `depends`: the values
    that depend on the picture. What is true for one image and for two is true for any number."""
    for step in steps:
        layer = step.layer
        kind = TYPES.get(layer.type)
        if kind is None:
            if depends.intersection(step.writes):
                return f"featd does not know whether {layer} keeps images apart"
            continue
        bottoms = [shape for bottom in layer.bottoms if (shape := one.blobs[bottom]) is not None]
        if len(bottoms) < len(layer.bottoms) or not depends.intersection(step.reads):
            continue
        if mixed := kind.mixes(layer, bottoms):
            return f"{layer}: {mixed}"
    try:
        two = infer(steps, 2)
    except ModelError as error:
        return f"it does not fit two images: {error}"
    for name, params in two.params.items():
        if params != one.params[name]:
            return f"layer {name!r} has weights that depend on the batch"
    for step in steps:
        for value, blob in zip(step.writes, step.layer.tops, strict=True):
            reason = _apart(blob, one, two, value in depends)
            if reason is not None:
                return reason
    return None


def _apart(blob: str, one: Shapes, two: Shapes, depends: bool) -> str | None:
    before, after = one.blobs[blob], two.blobs[blob]
    if before is None or after is None or (not depends and before == after):
        return None
    if before[:1] == (1,) and after[:1] == (2,) and before[1:] == after[1:]:
        return None
    return (
        f"blob {blob!r} does not keep the batch as its first axis ({before} for one image, {after} for two)"
    )
