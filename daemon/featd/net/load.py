"""Loading a net: read, upgrade, refuse, cut down to the wanted blobs, infer shapes, match weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from featd.errors import ModelError, naming
from featd.net import gist, mapped
from featd.net.batch import any_batch, one_by_one
from featd.net.caffemodel import read_weights
from featd.net.graph import CONSTANTS, INPUT, Graph, Layer, Shape, Step, clash, trace, varying
from featd.net.layers.table import TYPES, perhaps
from featd.net.net import MOST_CHANNELS, Net, caffe_defaults, flattened
from featd.net.onnx_file.net import OnnxNet, load_onnx
from featd.net.onnx_file.suffix import is_onnx
from featd.net.prototxt import Definition, define, read
from featd.net.resized import resized
from featd.net.shapes import infer
from featd.net.upgrade import refusal, upgrade
from featd.net.weights import match

Size: TypeAlias = tuple[int, int]
"""(height, width)."""
InputSize: TypeAlias = Callable[[Size | None], Size]
ANY_SIZE: Final = (224, 224)
"""Of a net that takes any size, where nobody says one."""


def load_net(
    net: str,
    weights: Path | None = None,
    blobs: Sequence[str] = (),
    input_size: InputSize = lambda own: own or ANY_SIZE,
) -> Net | OnnxNet:
    """Read a net: `gist`, which is built in, the path of a definition with the path of its `weights`, or that of an
    ONNX file, whose only output is the blob where none is named.

    `input_size`: from the (height, width) of the input in the file, None where an ONNX file takes any, to those wanted.
    ModelError says what is wrong and what to do. Nothing is run.
    """
    with naming(net, weights or net):
        if is_onnx(net):
            return load_onnx(net, blobs, input_size)
        return _load_caffe(net, weights, blobs, input_size)


def _load_caffe(net: str, weights: Path | None, blobs: Sequence[str], input_size: InputSize) -> Net:
    built_in = net == gist.NAME
    if built_in:
        raw = gist.prototxt().encode()
        definition = define(raw, net)
        blobs = blobs or (gist.BLOB,)
    else:
        raw, definition = read(Path(net))
    graph = trace_whole(definition, net)
    for blob in blobs:
        if blob not in graph.blobs:
            raise _first_problem(
                definition, ModelError(f"{net}: has no blob {blob!r}; it has: {', '.join(graph.blobs)}")
            )
    if built_in:
        stored, identity = gist.stored_weights(), {"net": f"gist/{gist.REVISION}"}
    else:
        assert weights is not None  # the configuration demands it
        sha256, stored = read_weights(weights)
        identity = {
            "net": "sha256:" + hashlib.sha256(raw).hexdigest(),
            "weights": "sha256:" + sha256,
        }
    weights_source = str(weights or net)
    steps = graph.needed(tuple(blobs))
    for step in steps:
        if step.layer.index in definition.problems:
            raise ModelError(definition.problems[step.layer.index])
        if reason := refusal(step.layer):
            raise ModelError(f"{net}: {reason}")
    try:
        input_blob = _input(steps, blobs, net)
    except ModelError as error:
        raise _first_problem(definition, error) from None
    one = infer(steps, 1)
    input_shape = _input_shape(input_blob, one.blobs[input_blob], net)
    size = input_size(input_shape[1:])
    if size != input_shape[1:]:
        steps, one = resized(steps, one, input_blob, size, net)
        input_shape = (input_shape[0], *size)
    depends = varying(steps, {input_blob})
    for blob in blobs:
        if graph.blobs[blob] not in depends:
            raise ModelError(
                f"{net}: blob {blob!r} does not depend on the picture: it is the same for every one"
            )
    matched = match(
        [step.layer for step in steps],
        one.params,
        stored,
        weights_source,
        [step.layer for step in graph.steps],
    )
    if matched.missing:
        raise ModelError(
            f"{weights_source}: holds no weights for layer {', '.join(map(repr, matched.missing))} of {net}: "
            "these weights belong to another net"
        )
    mapped.rest()
    return Net(
        name=definition.message.name or Path(net).stem,
        source=net,
        blobs={blob: flattened(one.blobs[blob]) for blob in blobs},
        input_shape=input_shape,
        identity=identity,
        preprocess=gist.PREPROCESS if built_in else caffe_defaults(input_shape),
        input_blob=input_blob,
        layers=steps,
        values={blob: graph.blobs[blob] for blob in blobs},
        shapes=one.blobs,
        weights=matched.weights,
        filled=matched.filled,
        unused_weights=matched.unused,
        other_weights=matched.others,
        texts=definition.texts,
        blocks=definition.blocks,
        precisions=definition.precisions,
        old_form=len(definition.message.layers) > 0,
        clash=clash(steps),
        one_by_one=one_by_one(steps, one, depends),
        constants=frozenset(value for step in steps for value in step.writes if value not in depends),
    )


def trace_whole(definition: Definition, source: str) -> Graph:
    """All layers of the TEST phase. ModelError where they do not fit together."""
    try:
        return trace(any_batch(upgrade(definition.message, source), source), source)
    except ModelError as error:
        raise _first_problem(definition, error) from None


def _first_problem(definition: Definition, error: ModelError) -> ModelError:
    """The likeliest reason why a blob is missing: what could not be read, or a stage, as DIGITS writes them."""
    for problem in definition.problems.values():
        return ModelError(problem)
    net = definition.message
    stages = {
        stage: None
        for layer in (*net.layer, *net.layers)
        for rule in layer.include
        for stage in rule.stage
        if stage not in net.state.stage
    }
    if not stages:
        return error
    stage = "deploy" if "deploy" in stages else next(iter(stages))
    return ModelError(
        f"{error}. Layers of the stages {', '.join(stages)} are left out: to have one, add "
        f'`state {{ stage: "{stage}" }}` to the definition'
    )


def require_lowered(net: Net) -> None:
    """ModelError naming the first layer that the onnxruntime engine cannot run."""
    for step in net.layers:
        if why := not_lowered(step.layer, net.blocks):
            raise ModelError(
                f"{net.source}: {step.layer}: {why}{perhaps(step.layer.type)}: "
                'set engine = "caffe" where a Caffe that has it is installed, or ask for blobs before it'
            )


def not_lowered(layer: Layer, blocks: Mapping[int, str]) -> str | None:
    """Why the onnxruntime engine does not run a layer, or None. `blocks`: see Definition."""
    if layer.type not in TYPES:
        return "the onnxruntime engine does not run this type"
    if block := blocks.get(layer.index):
        return f"the onnxruntime engine does not know {block!r}, which may change the vectors"
    return None


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
            f"{source}: {sources[0]} reads data by itself, but featd feeds an Input layer: use the deploy.prototxt"
        )
    if len(inputs) != 1:
        found = ", ".join(inputs) or "none"
        raise ModelError(
            f"{source}: these blobs need {len(inputs)} inputs ({found}); featd feeds exactly one"
        )
    return inputs[0]


def _input_shape(blob: str, shape: Shape | None, source: str) -> tuple[int, int, int]:
    if shape is None or len(shape) != 4:
        said = "x".join(map(str, shape or ()))
        raise ModelError(
            f"{source}: input {blob!r} has shape {said}; featd feeds pictures: batch x channels x height x width"
        )
    if not 1 <= shape[1] <= MOST_CHANNELS:
        raise ModelError(
            f"{source}: input {blob!r} has {shape[1]} channels, and featd feeds at most {MOST_CHANNELS}: OpenCV and"
            " Pillow, which read the pictures, refuse those of more. Use a net that takes up to"
            f" {MOST_CHANNELS} channels of one picture, or make these vectors with a program that reads such files"
        )
    return (shape[1], shape[2], shape[3])
