"""A loaded ONNX file: everything an engine needs, and everything that decides its vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from featd.errors import ModelError
from featd.net import mapped
from featd.net.net import MOST_CHANNELS, PreprocessDefaults
from featd.net.onnx_file import weights
from featd.net.onnx_file.graph import Graph, Node, read_graph, require
from featd.net.onnx_file.shapes import Tensor, check_sizes, infer

Size = tuple[int, int]
"""(height, width)."""
Floats = npt.NDArray[np.float32]

VECTORS: Final = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
"""Types of tensors that can be vectors, which are stored as float32 or float16."""
_PICTURES: Final = {TensorProto.FLOAT, TensorProto.FLOAT16}
_SCALE: Final = 1 / 255


@dataclass(frozen=True, slots=True)
class PictureInput:
    """How the net takes pictures."""

    name: str
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    channels_last: bool
    half: bool
    """float16."""
    batch: int
    """Images that it takes at once; 0: any number."""

    @property
    def dims(self) -> tuple[int, ...]:
        """As in the file, for one image or for the only batch that there is."""
        channels, height, width = self.shape
        batch = max(self.batch, 1)
        return (batch, height, width, channels) if self.channels_last else (batch, channels, height, width)

    def feed(self, batch: Floats) -> npt.NDArray[Any]:
        """Pictures (n, C, H, W) as the net takes them."""
        if self.channels_last:
            batch = batch.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(batch, np.float16 if self.half else np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNet:
    """A net cut down to what its wanted blobs need. Made by `featd.net.load.load_net`."""

    name: str
    source: str
    blobs: dict[str, int]
    """Wanted blob -> flattened size, in the order asked for. 0: only running the net tells."""
    tensors: tuple[str, ...]
    """Their names in the file."""
    input: PictureInput
    identity: dict[str, str]
    """What decides the vectors: hashes of the bytes read."""
    preprocess: PreprocessDefaults
    mixing: str | None
    """Why images must run one at a time, as far as the operators tell."""
    without: tuple[str, ...]
    """Optimizers of ONNX Runtime that crash on this net."""
    model: Any
    """ModelProto, with the arrays in `large` left empty."""
    large: dict[str, memoryview]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.input.shape

    def serialized(self, apart: Path | None = None) -> bytes:
        """The ModelProto's bytes. `apart`: a folder that gets a file with the large arrays, which then are not in them.
        OSError where it cannot be written."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        weights.fill(model, self.large, apart)
        return bytes(model.SerializeToString())


def load_onnx(source: str, blobs: Sequence[str], input_size: Callable[[Size | None], Size]) -> OnnxNet:
    """See `featd.net.load.load_net`. `input_size` gets None where the file leaves the size open."""
    graph = read_graph(source)
    tensors = _wanted(graph, blobs)
    nodes = graph.needed(tensors)
    require(graph, nodes)
    picture = picture_input(graph, _only_input(graph, tensors), input_size)
    model = cut(graph, nodes, tensors, picture)
    found = infer(fixed(model, picture), source)
    made = {name: str(node) for node in nodes for name in node.writes}
    check_sizes(found, made, max(picture.batch, 1), source)
    sizes = {}
    for name in tensors:
        sizes[blob_name(name)] = _size(graph, name, found.get(name, Tensor(0, None)), picture)
    names = [tensor.name for tensor in model.graph.initializer]
    beside, hashes = weights.external(graph, names)
    large = {name: graph.large[name].data for name in names if name in graph.large} | beside
    weights.check_lengths(graph, names, large)
    mapped.rest()
    return OnnxNet(
        name=model.graph.name or Path(source).stem,
        source=source,
        blobs=sizes,
        tensors=tensors,
        input=picture,
        identity={
            "net": f"sha256:{graph.sha256}",
            **{f"data {file}": f"sha256:{sha256}" for file, sha256 in hashes.items()},
        },
        preprocess=onnx_defaults(picture.shape),
        mixing=graph.mixing(nodes),
        without=_crashing(graph, nodes),
        model=model,
        large=large,
    )


def _crashing(graph: Graph, nodes: Sequence[Node]) -> tuple[str, ...]:
    """ONNX Runtime 1.32 dies on the CPU where numbers of float16 are transposed and then multiplied by stored ones, as
    in PyTorch's attention (nn.MultiheadAttention), unless it leaves this optimizer out."""
    transposed = {name for node in nodes if node.message.op_type == "Transpose" for name in node.writes}
    half = {name for name, array in graph.arrays.items() if array.data_type == TensorProto.FLOAT16}
    products = (node for node in nodes if node.message.op_type == "MatMul")
    if any(transposed.intersection(node.reads) and half.intersection(node.reads) for node in products):
        return ("FuseFp16InitializerToFp32NodeTransformer",)
    return ()


def onnx_defaults(input_shape: tuple[int, int, int]) -> PreprocessDefaults:
    """An ONNX file does not say how it wants pictures; where the configuration does not either: RGB from 0 to 1."""
    channels, height, width = input_shape
    names = {1: "gray", 2: "gray_alpha", 3: "rgb", 4: "rgba"}
    return PreprocessDefaults((height, width), names[channels], (0.0,), _SCALE)


def blob_name(tensor: str) -> str:
    """A blob is named as its tensor, without the slashes in front that some exporters write: blobs are paths in a
    shard."""
    return tensor.lstrip("/") or tensor


def _wanted(graph: Graph, blobs: Sequence[str]) -> tuple[str, ...]:
    """The tensors of these blobs, or of the only output."""
    if not blobs:
        outputs = [name for name in graph.outputs if graph.depends[name] and name not in graph.inputs]
        if not outputs:
            raise ModelError(f"{graph.source}: none of its outputs depends on a picture")
        if len(outputs) > 1:
            raise ModelError(
                f"{graph.source}: has {len(outputs)} outputs: name the blobs to extract in model.blobs, for example"
                f" {', '.join(map(blob_name, outputs[:8]))}"
            )
        return (outputs[0],)
    made = [name for name in graph.depends if name not in graph.inputs]
    by_blob = {blob_name(name): name for name in reversed(made)} | {name: name for name in made}
    found = tuple(by_blob.get(name) or by_blob.get(blob_name(name), "") for name in blobs)
    for blob, name in zip(blobs, found, strict=True):
        if not name:
            raise ModelError(
                f"{graph.source}: has no blob {blob!r}; its outputs: {', '.join(map(blob_name, graph.outputs))}"
                f" (`featd net {graph.source}` lists all)"
            )
        if not graph.depends[name]:
            raise ModelError(
                f"{graph.source}: blob {blob!r} does not depend on the picture: it is the same for every one"
            )
    if len(set(found)) != len(found):
        raise ModelError(f"{graph.source}: a blob is named twice")
    return found


def _only_input(graph: Graph, tensors: Sequence[str]) -> str:
    """The one input that these tensors need."""
    needed = frozenset().union(*(graph.depends[name] for name in tensors))
    for name in needed:
        if why := no_picture(graph.inputs[name]):
            raise ModelError(
                f"{graph.source}: these blobs need the input {name!r}, {why}: featd feeds pictures; ask for blobs that"
                " need the picture alone"
            )
    if len(needed) != 1:
        raise ModelError(
            f"{graph.source}: these blobs need {len(needed)} inputs ({', '.join(sorted(needed))}); featd feeds one"
        )
    return next(iter(needed))


def no_picture(value: Any) -> str | None:
    """Why an input takes no pictures, or None."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return "which is no tensor"
    if tensor.elem_type not in _PICTURES:
        return f"which is {type_name(tensor.elem_type)} (token ids or text?), not float32 or float16"
    if len(tensor.shape.dim) != 4:
        return f"which has {len(tensor.shape.dim)} axes, not 4 (batch, channels, height, width)"
    return None


def type_name(kind: int) -> str:
    """`int64` and the like."""
    return (
        str(TensorProto.DataType.Name(kind)).lower()
        if kind in TensorProto.DataType.values()
        else f"type {kind}"
    )


def picture_input(graph: Graph, name: str, input_size: Callable[[Size | None], Size]) -> PictureInput:
    """How the input `name` takes pictures. ModelError where it takes none of 1 to 4 channels."""
    tensor = graph.inputs[name].type.tensor_type
    batch, *dims = (axis.dim_value if axis.dim_value > 0 else 0 for axis in tensor.shape.dim)
    channels_last = not 1 <= dims[0] <= MOST_CHANNELS and 1 <= dims[2] <= MOST_CHANNELS
    channels, height, width = (dims[2], *dims[:2]) if channels_last else dims
    channels = channels or 3  # left open: pictures are in colour
    if channels > MOST_CHANNELS:
        raise ModelError(
            f"{graph.source}: its input {name!r} is {'x'.join(map(str, (batch or 'n', *dims)))}, and featd feeds"
            f" pictures of 1 to {MOST_CHANNELS} channels, as batch x channels x height x width or batch x height x"
            " width x channels"
        )
    own = (height, width) if height and width else None
    size = input_size(own)
    if any(mine not in (0, wanted) for mine, wanted in zip((height, width), size, strict=True)):
        raise ModelError(
            f"{graph.source}: takes pictures of {height or 'any'}x{width or 'any'} (height x width), and"
            f" preprocess.size and preprocess.crop ask for {size[0]}x{size[1]}: leave crop out, and size too or make it"
            " larger; or export the net with axes of any size (dynamic axes)"
        )
    return PictureInput(
        name, (channels, *size), channels_last, tensor.elem_type == TensorProto.FLOAT16, batch
    )


def cut(graph: Graph, nodes: Sequence[Node], tensors: Sequence[str], picture: PictureInput) -> Any:
    """The ModelProto of these nodes alone: the input `picture`, and as outputs these tensors and those of the file.

    The file's own outputs that these nodes make, and what it says of shapes, stay as they are: both decide which
    operators ONNX Runtime joins, and that changes the last bits of vectors.
    """
    model = onnx.ModelProto(ir_version=graph.message.ir_version)
    model.opset_import.extend(graph.message.opset_import)
    model.graph.name = graph.message.graph.name or "net"
    read = {name for node in nodes for name in node.reads}.union(tensors)
    for name, tensor in graph.arrays.items():
        if name in read:
            array = model.graph.initializer.add()
            array.CopyFrom(tensor)
            array.name = name
            array.ClearField("external_data")
            array.ClearField("data_location")
    for node in nodes:
        model.graph.node.add().CopyFrom(node.message)
    value = model.graph.input.add()
    value.CopyFrom(graph.inputs[picture.name])
    for axis in value.type.tensor_type.shape.dim:
        if axis.dim_value <= 0 and not axis.dim_param:
            axis.Clear()  # of any length, as no axis at all
    known = {value.name: value for value in (*graph.message.graph.value_info, *graph.message.graph.output)}
    made = {name for node in nodes for name in node.writes}
    outputs = dict.fromkeys((*tensors, *(name for name in graph.outputs if name in made)))
    model.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in outputs)
    model.graph.value_info.extend(
        known[name] for name in sorted(made.intersection(known).difference(outputs))
    )
    return model


def fixed(model: Any, picture: PictureInput) -> Any:
    """The model for the smallest batch, to infer shapes with: what the file itself says of them may be wrong."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.ClearField("type")
    (value,) = copy.graph.input
    for axis, length in zip(value.type.tensor_type.shape.dim, picture.dims, strict=True):
        axis.dim_value = length
    return copy


def _size(graph: Graph, name: str, tensor: Tensor, picture: PictureInput) -> int:
    """Numbers per image of a wanted blob; 0: unknown."""
    if why := no_vector(tensor, picture):
        raise ModelError(f"{graph.source}: blob {blob_name(name)!r} is no feature vector: {why}")
    if tensor.shape is None:
        return 0
    return int(np.prod(tensor.shape[1:], dtype=np.int64))


def no_vector(tensor: Tensor, picture: PictureInput) -> str | None:
    """Why a tensor is no vector for each image, or None."""
    if tensor.type and tensor.type not in VECTORS:
        return f"it holds {type_name(tensor.type)} (token ids, text, class numbers or masks?), not floats"
    batch = max(picture.batch, 1)
    if tensor.axes is not None and (not tensor.axes or tensor.axes[0] not in (None, batch)):
        shape = "x".join("?" if axis is None else str(axis) for axis in tensor.axes)
        images = "1 image" if batch == 1 else f"{batch} images"
        return f"its first axis is not the batch (its shape for {images} is {shape or 'a single number'})"
    if 0 in (tensor.axes or ())[1:]:
        return "it is empty"
    return None
