"""What `featd net` shows of a net: layers, blobs with sizes, weights, and what runs where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featd.errors import ModelError
from featd.net import gist
from featd.net.caffemodel import StoredLayer, read_weights
from featd.net.graph import Layer, Shape
from featd.net.load import not_lowered, trace_whole
from featd.net.net import flattened
from featd.net.onnx_file.suffix import is_onnx
from featd.net.prototxt import define, read
from featd.net.shapes import Shapes, infer
from featd.net.upgrade import refusal
from featd.net.weights import match


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of the TEST phase."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    top_shapes: tuple[Shape | None, ...]
    """With batch 1; None: unknown."""
    weights: int | None
    """Count of its weights; None: unknown."""
    onnxruntime: bool
    """Whether the onnxruntime engine runs it."""
    problem: str | None
    """Why no engine runs it, or why its settings do not fit; None where nothing is wrong."""


@dataclass(frozen=True, slots=True)
class BlobReport:
    """One blob that can be asked for."""

    name: str
    shape: Shape | None
    """Without the batch axis; None: unknown."""
    size: int
    """Numbers per image, flattened; 0: unknown."""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """How a weights file and a net agree, by layer names."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class NetReport:
    """Everything `featd net` prints."""

    name: str
    source: str
    layers: tuple[LayerReport, ...]
    blobs: tuple[BlobReport, ...]
    weights: WeightsReport | None
    """None where no weights were given."""
    outputs: tuple[str, ...] = ()
    """What an ONNX file itself names as its outputs; empty for a net of Caffe."""
    not_vectors: tuple[str, ...] = ()
    """Of these, those that are no blobs, with the reason."""
    input: str | None = None
    """How an ONNX file takes pictures."""


def describe(net_path_or_builtin: str, weights: Path | None = None) -> NetReport:
    """Look at a net without loading it. ModelError only where the files cannot be read at all."""
    if is_onnx(net_path_or_builtin):
        from featd.net.onnx_file.describe import describe_onnx

        if weights is not None:
            raise ModelError(
                f"{net_path_or_builtin}: an ONNX file has its own weights: leave the weights out"
            )
        return describe_onnx(net_path_or_builtin)
    stored: list[StoredLayer] | None = None
    if net_path_or_builtin == gist.NAME:
        definition = define(gist.prototxt().encode(), net_path_or_builtin)
        stored = gist.stored_weights()
    else:
        _, definition = read(Path(net_path_or_builtin))
        stored = read_weights(weights)[1] if weights is not None else None
    graph = trace_whole(definition, net_path_or_builtin)
    layers = [step.layer for step in graph.steps]
    shapes = infer(graph.steps, 1, tolerant=True)
    reports = []
    for layer in layers:
        params = shapes.params[layer.key]
        problem = definition.problems.get(layer.index) or refusal(layer) or shapes.problems.get(layer.key)
        reports.append(
            LayerReport(
                layer.name,
                layer.type,
                layer.bottoms,
                layer.tops,
                tuple(shapes.blobs[top] for top in layer.tops),
                None if params is None else sum(math.prod(shape) for shape in params),
                problem is None and not_lowered(layer, definition.blocks) is None,
                problem,
            )
        )
    blobs = []
    for blob in graph.blobs:
        shape = shapes.blobs[blob]
        blobs.append(BlobReport(blob, None if shape is None else shape[1:], flattened(shape)))
    source = str(weights or net_path_or_builtin)
    return NetReport(
        definition.message.name or Path(net_path_or_builtin).stem,
        net_path_or_builtin,
        tuple(reports),
        tuple(blobs),
        None if stored is None else _weights(layers, stored, shapes, source),
    )


def _weights(
    layers: Sequence[Layer], stored: list[StoredLayer], shapes: Shapes, source: str
) -> WeightsReport:
    needs = tuple(name for name, params in shapes.params.items() if params)
    try:
        found = match(layers, shapes.params, stored, source)
    except ModelError as error:
        held = {layer.name for layer in stored if layer.blobs}
        return WeightsReport(
            tuple(name for name in needs if name in held),
            tuple(name for name in needs if name not in held),
            tuple(layer.name for layer in stored if layer.blobs and layer.name not in shapes.params),
            str(error),
        )
    matched = tuple(name for name in needs if name not in found.missing)
    return WeightsReport(matched, found.missing, found.unused, None)
