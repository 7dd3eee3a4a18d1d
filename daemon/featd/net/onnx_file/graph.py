"""The graph of an ONNX file: read, checked node by node, and cut down to what wanted tensors need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError, Message

from featd.errors import ModelError, where_to_look
from featd.net.mapped import copy_of
from featd.net.onnx_file.structure import Large, Place, Structure
from featd.net.wire import WireError

MOST_FILE_BYTES: Final = (1 << 31) - 1
"""protobuf's own limit on a message. Larger nets have external data."""
MOST_INPUTS: Final = 64
MOST_DEPTH: Final = 8
"""Of graphs within graphs."""
OLDEST_OPSET: Final = 7
"""The oldest that ONNX Runtime supports."""
_STANDARD: Final = ("", "ai.onnx", "ai.onnx.ml")
_ENDLESS: Final = {"Loop", "Scan", "SequenceMap"}
_RANDOM: Final = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
}
_MIXING: Final = {"DynamicQuantizeLinear": "takes one scale for all images of a batch"}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator. `reads` has what graphs inside of it read, too."""

    message: Any
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    problem: str | None
    """Why featd does not run it, or None."""

    def __str__(self) -> str:
        name = self.message.name or next(iter(self.writes), "without a name")
        return f"{self.message.op_type} {name!r}"


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Everything of an ONNX file that featd uses."""

    source: str
    sha256: str
    """Of the file's bytes."""
    message: Any
    """The ModelProto, with the arrays in `large` left empty."""
    inputs: dict[str, Any]
    """Name -> ValueInfoProto; without inputs that are only a name for a stored array."""
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    arrays: dict[str, Any]
    """Stored arrays: name -> TensorProto, empty where `large` has its numbers."""
    large: dict[str, Large]
    depends: dict[str, frozenset[str]]
    """Tensor -> the inputs that decide it. All tensors of the file."""

    def needed(self, tensors: Iterable[str]) -> list[Node]:
        """The nodes that make these tensors, in order."""
        wanted = set(tensors)
        found = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.writes):
                wanted.update(node.reads)
                found.append(node)
        return found[::-1]

    def mixing(self, nodes: Iterable[Node]) -> str | None:
        """Why these nodes do not keep the images of a batch apart, as far as their types tell."""
        for node in nodes:
            if why := _MIXING.get(node.message.op_type):
                return f"{node}: {why}"
        return None


def read_graph(source: str) -> Graph:
    """Read an ONNX file. ModelError where it is none, is cut short, or names what is not there. Nodes that featd does
    not run have a `problem`, which counts only where they are needed."""
    path = Path(source)
    try:
        view, sha256 = copy_of(path, MOST_FILE_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: cannot read the net: {error.strerror}{where_to_look(error)}") from None
    try:
        structure = Structure(view)
        model = onnx.ModelProto.FromString(structure.model)
    except (WireError, DecodeError) as error:
        raise ModelError(f"{path}: not a whole ONNX file: {error}: copy or export it again") from None
    if not _is_text(model):
        raise ModelError(f"{path}: a name in it is not UTF-8: the file is damaged: copy or export it again")
    return _graph(source, sha256, model, structure)


def _is_text(message: Any) -> bool:
    """Whether all texts in a message are UTF-8. protobuf does not ask, and gives bytes for those that are not."""
    for field, value in message.ListFields():
        values = (value,) if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


def _graph(source: str, sha256: str, model: Any, structure: Structure) -> Graph:
    if not model.graph.node:
        raise ModelError(f"{source}: holds no net: is this an ONNX file?")
    opsets = _opsets(source, model)
    arrays, large, constants = _arrays(source, model, structure)
    inputs = {value.name: value for value in model.graph.input if value.name not in arrays}
    if len(inputs) > MOST_INPUTS:
        raise ModelError(f"{source}: has {len(inputs)} inputs, and nets for pictures have one")
    depends = {name: frozenset({name}) for name in inputs}
    depends |= dict.fromkeys(arrays, frozenset())
    nodes = []
    for at, message in enumerate(model.graph.node):
        if at not in constants:
            nodes.append(Node(message, tuple(_reads(message)), _written(message), _problem(message, opsets)))
            _place(source, nodes[-1], depends)
    outputs = tuple(dict.fromkeys(value.name for value in model.graph.output))
    if lost := [name for name in outputs if name not in depends]:
        raise ModelError(f"{source}: nothing makes its output {lost[0]!r}: the file is damaged")
    return Graph(source, sha256, model, inputs, outputs, tuple(nodes), arrays, large, depends)


def _opsets(source: str, model: Any) -> dict[str, int]:
    """Domain -> version. ModelError where the version of the format or of the standard is not one that featd knows."""
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{source}: its ir_version is {model.ir_version}, and this featd reads up to {onnx.IR_VERSION}: export it"
            " with an older opset_version, or install a newer onnx and onnxruntime"
        )
    opsets = {_domain(one.domain): one.version for one in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if "" not in opsets:
        raise ModelError(f"{source}: does not say its opset (opset_import): export it again")
    if not OLDEST_OPSET <= opsets[""] <= newest:
        raise ModelError(
            f"{source}: its opset is {opsets['']}, and this featd runs {OLDEST_OPSET} to {newest}: export it with"
            " another opset_version, or convert it with onnx.version_converter"
            + (", or install a newer onnx and onnxruntime" if opsets[""] > newest else "")
        )
    return opsets


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _arrays(
    source: str, model: Any, structure: Structure
) -> tuple[dict[str, Any], dict[str, Large], set[int]]:
    """Initializers, and constants that hold a large array, by name; and the indices of these constants' nodes."""
    for sparse in model.graph.sparse_initializer:
        raise ModelError(
            f"{source}: array {sparse.values.name!r} is a sparse one, which featd does not read: export it as an"
            " ordinary one"
        )
    arrays: dict[str, Any] = {}
    large: dict[str, Large] = {}
    constants = {place[0] for place in structure.large if len(place) == 2}
    found: list[tuple[Any, str, Place]] = [
        (tensor, tensor.name, (at,)) for at, tensor in enumerate(model.graph.initializer)
    ]
    for at in sorted(constants):
        node = model.graph.node[at]
        if node.op_type != "Constant" or len(node.attribute) != 1 or len(node.output) != 1:
            raise ModelError(
                f"{source}: {node.op_type} {node.name!r} holds a large array, which is no constant"
            )
        found.append((node.attribute[0].t, node.output[0], (at, 0)))
    for tensor, name, place in found:
        if not name or name in arrays:
            raise ModelError(f"{source}: holds two arrays {name!r}: the file is damaged")
        arrays[name] = tensor
        if place in structure.large:
            large[name] = structure.large[place]
    return arrays, large, constants


def _place(source: str, node: Node, depends: dict[str, frozenset[str]]) -> None:
    """Note what the node's results depend on. ModelError where it reads what is not there yet, or makes what is."""
    inputs: frozenset[str] = frozenset()
    for name in node.reads:
        if name not in depends:
            raise ModelError(
                f"{source}: {node} reads {name!r}, which nothing before it makes: a cycle, or a damaged file"
            )
        inputs |= depends[name]
    for name in node.writes:
        if name in depends:
            raise ModelError(f"{source}: {name!r} is made twice: the file is damaged")
        depends[name] = inputs


def _written(message: Any) -> tuple[str, ...]:
    return tuple(name for name in message.output if name)


def _reads(message: Any, depth: int = 0) -> Iterator[str]:
    """What a node reads, with what its inner graphs read from outside of them."""
    yield from (name for name in message.input if name)
    if depth > MOST_DEPTH:
        return  # refused by `_problem`
    for graph in _inner(message):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            yield from (name for name in _reads(node, depth + 1) if name not in own)
            own.update(node.output)
        yield from (value.name for value in graph.output if value.name not in own)


def _inner(message: Any) -> Iterator[Any]:
    for attribute in message.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _held(message: Any) -> Iterator[Any]:
    """The arrays in a node's attributes and in the graphs inside of it, but not in their nodes."""
    for attribute in message.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
    for graph in _inner(message):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _problem(message: Any, opsets: dict[str, int], depth: int = 0) -> str | None:
    """Why featd does not run a node, or None."""
    domain, kind = _domain(message.domain), message.op_type
    if domain not in _STANDARD:
        return (
            f"operator {kind!r} is of {message.domain!r}, and featd runs operators of the ONNX standard: export the net"
            " without it (optimized files have such operators; local functions can be inlined with"
            " onnx.inliner.inline_local_functions)"
        )
    if kind in _ENDLESS:
        return f"operator {kind!r} may run without end"
    if kind in _RANDOM or (kind == "Dropout" and len(message.input) > 2 and message.input[2]):
        return f"operator {kind!r} gives other numbers each time"
    if depth > MOST_DEPTH:
        return f"graphs are nested more than {MOST_DEPTH} deep"
    try:
        onnx.defs.get_schema(kind, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return f"opset {opsets.get(domain, 1)} of the ONNX standard has no operator {kind!r}"
    if not _written(message):
        return f"operator {kind!r} makes nothing"
    if any(tensor.external_data for tensor in _held(message)):
        return "an array that is no initializer of the net is in another file"
    inner = (_problem(node, opsets, depth + 1) for graph in _inner(message) for node in graph.node)
    return next((problem for problem in inner if problem), None)


def require(graph: Graph, nodes: Sequence[Node]) -> None:
    """ModelError naming the first of these nodes that featd does not run."""
    for node in nodes:
        if node.problem is not None:
            raise ModelError(f"{graph.source}: {node}: {node.problem}; or ask for blobs before it")
