"""From [model] to a Net: read, upgrade, refuse, cut down to the wanted blobs, infer shapes, match weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featd.config import ModelConfig
from featd.errors import ModelError
from featd.net import gist
from featd.net.caffemodel import StoredLayer, read_weights
from featd.net.graph import INPUT, Graph, Shape, Step, clash, trace
from featd.net.layers.table import TYPES
from featd.net.net import Net, caffe_defaults, file_stat, flattened
from featd.net.prototxt import parse, read
from featd.net.shapes import Shapes, infer
from featd.net.upgrade import refuse, upgrade
from featd.net.weights import Wanted, match

__all__ = ["Net", "load_net"]


def load_net(model: ModelConfig) -> Net:
    """Read the configured net. ModelError says what is wrong and the way out; nothing is run."""
    if model.built_in:
        return _built_in(model)
    path = Path(model.net)
    raw, message = read(path)
    layers = upgrade(message, str(path))
    refuse(layers, str(path))
    graph = trace(layers, str(path))
    _check_blobs(graph, model.blobs, str(path))
    steps = graph.needed(model.blobs)
    if model.engine == "onnxruntime":
        require_lowered(steps, str(path))
    assert model.weights is not None  # the config says so
    weights_path = Path(model.weights)
    try:
        stat = file_stat(weights_path)
    except OSError as error:
        raise ModelError(
            f"{weights_path}: cannot read the weights: {error.strerror}: check model.weights"
        ) from None
    bytes_read, stored = read_weights(weights_path)
    identity = {
        "net": "sha256:" + hashlib.sha256(raw).hexdigest(),
        "weights": "sha256:" + hashlib.sha256(bytes_read).hexdigest(),
    }
    net = _assemble(
        name=message.name or path.stem,
        source=str(path),
        graph=graph,
        steps=steps,
        blobs=model.blobs,
        stored=stored,
        weights_source=str(weights_path),
    )
    return replace(
        net,
        identity=identity,
        preprocess=caffe_defaults(net.input_shape),
        prototxt=raw.decode("utf-8-sig"),
        weights_path=weights_path,
        weights_stat=stat,
    )


def _built_in(model: ModelConfig) -> Net:
    text = gist.prototxt()
    layers = upgrade(parse(text, model.net), model.net)
    graph = trace(layers, model.net)
    blobs = model.blobs or (gist.BLOB,)
    _check_blobs(graph, blobs, model.net)
    net = _assemble(
        name=model.net,
        source=model.net,
        graph=graph,
        steps=graph.needed(blobs),
        blobs=blobs,
        stored=gist.stored_weights(),
        weights_source=model.net,
    )
    return replace(
        net,
        identity={"net": f"gist/{gist.REVISION}"},
        preprocess=gist.PREPROCESS,
        prototxt=text,
    )


def _check_blobs(graph: Graph, blobs: Sequence[str], source: str) -> None:
    for blob in blobs:
        if blob not in graph.blobs:
            raise ModelError(f"{source}: has no blob {blob!r}; it has: {', '.join(graph.blobs)}")


def require_lowered(steps: Sequence[Step], source: str) -> None:
    """ModelError naming the first layer that the onnxruntime engine cannot run."""
    for step in steps:
        if step.layer.type not in TYPES:
            raise ModelError(
                f"{source}: {step.layer}: the onnxruntime engine does not run this type: "
                'set engine = "caffe" where real Caffe is installed, or ask for blobs before it'
            )


def _input(steps: Sequence[Step], blobs: Sequence[str], source: str) -> str:
    read = {bottom for step in steps for bottom in step.layer.bottoms}.union(blobs)
    inputs = [top for step in steps if step.layer.type == INPUT for top in step.layer.tops if top in read]
    sources = [step.layer for step in steps if not step.layer.bottoms and step.layer.type != INPUT]
    if sources:
        raise ModelError(
            f"{source}: {sources[0]} makes data by itself; pictures come in by an Input layer: take the deploy.prototxt"
        )
    if len(inputs) != 1:
        found = ", ".join(inputs) or "none"
        raise ModelError(
            f"{source}: these blobs need {len(inputs)} inputs ({found}); featd feeds exactly one"
        )
    return inputs[0]


def _input_shape(blob: str, shape: Shape | None, source: str) -> tuple[int, int, int]:
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        said = "x".join(map(str, shape or ()))
        raise ModelError(
            f"{source}: input {blob!r} has shape {said}; featd feeds pictures: batch x 3 or 1 x height x width"
        )
    return (shape[1], shape[2], shape[3])


def _check_batch(one: Shapes, two: Shapes, source: str) -> None:
    """Every blob must keep the batch as its first axis, or images would mix; no weight may depend on the batch."""
    for layer, params in two.params.items():
        if params != one.params[layer]:
            raise ModelError(
                f"{source}: layer {layer!r} has weights that depend on the batch size: look at its axis"
            )
    for blob, shape in two.blobs.items():
        before = one.blobs[blob]
        if shape is None or before is None:
            continue
        if shape[:1] != (2,) or before[:1] != (1,) or shape[1:] != before[1:]:
            raise ModelError(
                f"{source}: blob {blob!r} does not keep the batch as its first axis ({before} for one image, {shape} "
                "for two): featd cannot tell its images apart; look for a Reshape with fixed dims, or axis: 0"
            )


def _assemble(
    *,
    name: str,
    source: str,
    graph: Graph,
    steps: tuple[Step, ...],
    blobs: Sequence[str],
    stored: Sequence[StoredLayer],
    weights_source: str,
) -> Net:
    input_blob = _input(steps, blobs, source)
    one = infer(steps, 1)
    input_shape = _input_shape(input_blob, one.blobs[input_blob], source)
    _check_batch(one, infer(steps, 2), source)
    matched = match(
        [Wanted(step.layer, one.params[step.layer.name]) for step in steps], stored, weights_source
    )
    if matched.missing:
        raise ModelError(
            f"{weights_source}: holds no weights for layer {', '.join(map(repr, matched.missing))} of {source}: "
            "these weights belong to another net"
        )
    return Net(
        name=name,
        source=source,
        blobs={blob: flattened(one.blobs[blob]) for blob in blobs},
        input_shape=input_shape,
        identity={},
        preprocess=caffe_defaults(input_shape),
        input_blob=input_blob,
        layers=steps,
        values={blob: graph.blobs[blob] for blob in blobs},
        shapes=one.blobs,
        weights=matched.weights,
        unused_weights=matched.unused,
        prototxt="",
        weights_path=None,
        weights_stat=None,
        clash=clash(steps),
    )
