"""From [model] to a Net: read, upgrade, refuse, cut down to the wanted blobs, infer shapes, match weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featd.config import ModelConfig
from featd.errors import ModelError
from featd.net import gist
from featd.net.batch import any_batch, one_by_one
from featd.net.caffemodel import StoredLayer, read_weights
from featd.net.graph import CONSTANTS, INPUT, Graph, Shape, Step, clash, trace, varying
from featd.net.layers.table import TYPES
from featd.net.net import Net, caffe_defaults, flattened
from featd.net.prototxt import parse, read
from featd.net.shapes import infer
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
    layers = any_batch(layers, str(path))
    graph = trace(layers, str(path))
    _check_blobs(graph, model.blobs, str(path))
    steps = graph.needed(model.blobs)
    if model.engine == "onnxruntime":
        require_lowered(steps, str(path))
    assert model.weights is not None  # the config says so
    weights_path = Path(model.weights)
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
    sources = [
        step.layer
        for step in steps
        if not step.layer.bottoms and step.layer.type != INPUT and step.layer.type not in CONSTANTS
    ]
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
    depends = varying(steps, {input_blob})
    for blob in blobs:
        if graph.blobs[blob] not in depends:
            raise ModelError(
                f"{source}: blob {blob!r} does not depend on the picture: it is the same for every one"
            )
    matched = match(
        [Wanted(step.layer, one.params[step.layer.key]) for step in steps],
        stored,
        weights_source,
        [step.layer for step in graph.steps],
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
        other_weights=matched.others,
        prototxt="",
        clash=clash(steps),
        one_by_one=one_by_one(steps, one, depends),
        constants=frozenset(value for step in steps for value in step.writes if value not in depends),
    )
