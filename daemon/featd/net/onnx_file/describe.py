"""What `featd net` shows of an ONNX file."""

from __future__ import annotations

import math
from pathlib import Path

from featd.errors import ModelError
from featd.net.describe import BlobReport, LayerReport, NetReport
from featd.net.graph import INPUT
from featd.net.load import ANY_SIZE
from featd.net.onnx_file.graph import Graph, read_graph
from featd.net.onnx_file.net import (
    PictureInput,
    Size,
    blob_name,
    cut,
    fixed,
    no_picture,
    no_vector,
    picture_input,
)
from featd.net.onnx_file.shapes import Tensor, infer


def describe_onnx(source: str) -> NetReport:
    """Look at a net without loading it. ModelError where it cannot be read, or has no input for pictures."""
    graph = read_graph(source)
    pictures = [name for name, value in graph.inputs.items() if no_picture(value) is None]
    if not pictures:
        told = "; ".join(f"{name!r}, {no_picture(value)}" for name, value in graph.inputs.items())
        raise ModelError(f"{source}: has no input for pictures (it has {told or 'none'})")
    picture = picture_input(graph, pictures[0], _any_size)
    nodes = [node for node in graph.nodes if node.problem is None]
    found = infer(fixed(cut(graph, nodes, (), picture), picture), source)
    unknown = Tensor(0, None)
    layers = [_input(graph, name, found.get(name, unknown)) for name in graph.inputs]
    blobs, others = [], []
    for node in graph.nodes:
        layers.append(
            LayerReport(
                blob_name(node.writes[0]) if node.writes else node.message.name,
                node.message.op_type,
                tuple(blob_name(name) for name in node.reads if graph.depends[name]),
                tuple(map(blob_name, node.writes)),
                tuple(found.get(name, unknown).shape for name in node.writes),
                sum(math.prod(graph.arrays[name].dims) for name in node.reads if name in graph.arrays)
                or None,
                node.problem is None,
                node.problem,
            )
        )
        for name in node.writes:
            tensor = found.get(name, unknown)
            if graph.depends[name] != {picture.name}:
                continue
            if why := no_vector(tensor, picture):
                others += [f"{blob_name(name)}: {why}"] if name in graph.outputs else []
                continue
            shape = None if tensor.shape is None else tensor.shape[1:]
            blobs.append(BlobReport(blob_name(name), shape, 0 if shape is None else math.prod(shape)))
    others += [
        f"{blob_name(name)}: needs {', '.join(sorted(graph.depends[name] - {picture.name}))}, and featd feeds the"
        " picture alone"
        for name in graph.outputs
        if graph.depends[name] - {picture.name}
    ]
    return NetReport(
        graph.message.graph.name or Path(source).stem,
        source,
        tuple(layers),
        tuple(blobs),
        None,
        tuple(blob_name(name) for name in graph.outputs),
        tuple(others),
        _pictures(graph, picture),
    )


def _pictures(graph: Graph, picture: PictureInput) -> str:
    """How the net takes pictures, for people: `pixels, float32, n x 3 x h x w (shown for 224x224)`."""
    channels, height, width = picture.shape
    names = ("n", "h", "w", channels) if picture.channels_last else ("n", channels, "h", "w")
    axes = graph.inputs[picture.name].type.tensor_type.shape.dim
    told = [axis.dim_value if axis.dim_value > 0 else name for axis, name in zip(axes, names, strict=True)]
    shown = f" (shown for {height}x{width})" if {"h", "w"}.intersection(told) else ""
    kind = "float16" if picture.half else "float32"
    return f"{blob_name(picture.name)}, {kind}, {' x '.join(map(str, told))}{shown}"


def _any_size(own: Size | None) -> Size:
    """Shapes are shown for this size where the file leaves it open."""
    return own or ANY_SIZE


def _input(graph: Graph, name: str, tensor: Tensor) -> LayerReport:
    why = no_picture(graph.inputs[name])
    return LayerReport(
        blob_name(name), INPUT, (), (blob_name(name),), (tensor.shape,), None, why is None, why
    )
