"""Lowers a net to ONNX: one graph with a free batch axis, one 2-D output per wanted blob, named as the blob."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from featd.errors import ModelError
from featd.net import schema
from featd.net.fold import absorbed, fold
from featd.net.graph import INPUT, Shape, Step
from featd.net.layers.affine import bn, statistics
from featd.net.layers.registry import Lowered, Weights
from featd.net.layers.table import TYPES
from featd.net.load import require_lowered
from featd.net.net import Net

OPSET: Final = 13
IR_VERSION: Final = 8
"""The oldest onnxruntime that featd allows supports both."""
_APART_BYTES: Final = 1 << 16
"""Smaller arrays are always in the bytes; shapes are among them, which ONNX Runtime needs while it loads."""


_IN_HALF: Final = frozenset(
    {
        *("Convolution", "Deconvolution", "InnerProduct", "ReLU", "Eltwise"),
        *("Concat", "Dropout", "Flatten", "Pooling", "Reshape", "Slice", "Split"),
    }
)
"""What computes in float16 where that is asked for: sums that GPUs have units for, which they add up in float32, and
what stands between them. All others (LRN, Softmax, Power, ...) have squares, exponents or long sums, and stay in
float32."""


def _computes_in_half(step: Step, doubtful: set[int]) -> bool:
    """Whether a layer computes in float16 where that is asked for."""
    layer = step.layer
    if layer.type == "Pooling":  # of averages, the sums would be float16
        method = layer.param.pooling_param.pool
        if method != schema.ENUMS["PoolingParameter.PoolMethod"]["MAX"] or len(layer.tops) > 1:
            return False
    return layer.type in _IN_HALF and not doubtful.intersection(step.reads)


def _doubtful(net: Net) -> set[int]:
    """The values that may hold numbers that are not finite although the weights and the picture are finite."""
    found: set[int] = set()
    for step in net.layers:
        if found.intersection(step.reads) or _makes_doubtful(net, step):
            found.update(step.writes)
    return found


def _makes_doubtful(net: Net, step: Step) -> bool:
    param, kind = step.layer.param, step.layer.type
    if kind == "Power":
        return bool(param.power_param.power < 0 or param.power_param.power % 1 != 0)
    if kind == "LRN":
        return bool(param.lrn_param.alpha < 0 or param.lrn_param.k <= 0)
    if kind == "MVN":
        return bool(param.mvn_param.normalize_variance and param.mvn_param.eps <= 0)
    if kind == "Normalize":
        return bool(param.norm_param.eps <= 0)
    weights = [one.array() for one in net.weights.get(step.layer.key, ())]
    if kind == "BatchNorm":
        _, deviation = statistics(weights, param.batch_norm_param.eps)
        return not (deviation > 0).all() or param.batch_norm_param.eps <= 0
    if kind == "BN":
        return not np.isfinite(bn(step.layer, weights[0].size, weights).factor).all()
    return kind in ("Exp", "Log")


class _Graph:
    """The ONNX graph in the making (featd.net.layers.registry.Builder).

    Written directly into the model's message: weights are hundreds of megabytes, and putting one message into another
    copies it.
    """

    def __init__(self, name: str, apart: Path | None) -> None:
        self._apart = apart
        self._half = False
        """Whether the layer that is being lowered computes in float16."""
        self._in_half: set[str] = set()
        """Tensors that are float16; all others are float32, or no floats."""
        self._cast: dict[str, str] = {}
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="featd")
        self.model.opset_import.append(helper.make_opsetid("", OPSET))
        self.model.graph.name = name
        self._scalars: dict[tuple[float, bool], str] = {}
        self._count = 0

    def _fresh(self) -> str:
        # Outputs are named "blob NAME", so these names cannot clash with them.
        self._count += 1
        return f"tensor {self._count}"

    def node(self, op: str, inputs: Sequence[str], /, **attributes: Any) -> str:
        return self.nodes(op, inputs, 1, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], count: int, /, **attributes: Any) -> list[str]:
        outputs = [self._fresh() for _ in range(count)]
        # Named, because onnxruntime 1.19 names a fused node after its parts, and names must be unique.
        self.model.graph.node.append(
            helper.make_node(op, list(inputs), outputs, name=outputs[0], **attributes)
        )
        return outputs

    def constant(self, array: npt.NDArray[Any]) -> str:
        if self._half and array.dtype == np.float32:
            array = _as_half(array)
        name = self._fresh()
        tensor = self.model.graph.initializer.add(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        if self._apart is None or array.nbytes < _APART_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=name)
            with Path(self._apart, name).open("wb") as file:
                file.write(np.ascontiguousarray(array).data)
        return name

    def scalar(self, value: float) -> str:
        key = (value, self._half)
        if key not in self._scalars:
            self._scalars[key] = self.constant(np.array(value, np.float32))
        return self._scalars[key]

    def begin(self, half: bool) -> None:
        """The layer that is lowered next computes in float16, or float32."""
        self._half = half

    def read(self, tensor: str) -> str:
        """The tensor in the precision of the layer that reads it."""
        if (tensor in self._in_half) == self._half:
            return tensor
        if tensor not in self._cast:
            to = TensorProto.FLOAT16 if self._half else TensorProto.FLOAT
            self._cast[tensor] = self.node("Cast", [tensor], to=to)
            self.made([self._cast[tensor]])
        return self._cast[tensor]

    def made(self, tensors: Sequence[str]) -> None:
        """These tensors are of the layer's precision."""
        if self._half:
            self._in_half.update(tensors)

    def reshape(self, tensor: str, shape: Shape, fixed: bool = False) -> str:
        # 0 copies the batch axis from the input.
        dims = shape if fixed else (0, *shape[1:])
        return self.node("Reshape", [tensor, self.constant(np.array(dims, np.int64))])


def _as_half(array: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(array).all():
        raise ModelError(
            f"float16 has no numbers beyond 65,504, and a weight is {np.abs(array).max():,.0f}: write"
            ' precision = "tf32" or "float32"'
        )
    return half


def to_onnx(net: Net, apart: Path | None = None, half: bool = False) -> bytes:
    """The serialized ModelProto of `net`: input `net.input_blob` float32 (n, C, H, W), outputs (n, d) in the
    order of `net.blobs`, named as `output_name` says. ModelError names a layer that cannot be lowered.

    `apart`: a folder that gets a file for each large array, which then is not in the bytes (ONNX calls it external).
    OSError where they cannot be written. `half`: layers of _IN_HALF compute in float16; input and outputs stay float32.
    """
    require_lowered(net)
    graph = _Graph(net.name, apart)
    values: dict[int, tuple[str, Shape]] = {}
    folded, doubtful = fold(net), _doubtful(net)
    for at, step in enumerate(net.layers):
        layer = step.layer
        if at in folded.absorbed:
            # It is part of the layer before it.
            values[step.writes[0]] = values[step.reads[0]]
            continue
        tops = tuple(_known(net, top) for top in layer.tops)
        if layer.type == INPUT:
            tensors: Sequence[str] = [_input_name(top) for top in layer.tops]
        else:
            weights = absorbed(net, step, folded.absorbing[at]) if at in folded.absorbing else None
            graph.begin(half and at not in folded.affine and _computes_in_half(step, doubtful))
            at_layer = _lowered(net, graph, step, values, weights, doubtful)
            affine = folded.affine.get(at)
            lower = TYPES[layer.type].lower if affine is None else affine.lower
            tensors = lower(graph, at_layer)
            graph.made(tensors)
        for value, tensor, top in zip(step.writes, tensors, tops, strict=False):
            values[value] = (tensor, top)
    graph.begin(False)
    batch = 1 if net.one_by_one else "n"
    made = graph.model.graph
    for blob, size in net.blobs.items():
        tensor, _ = _made(net, values, net.values[blob], blob)
        to_rows = graph.constant(np.array([-1, size], np.int64))
        made.node.append(helper.make_node("Reshape", [graph.read(tensor), to_rows], [output_name(blob)]))
        made.output.append(helper.make_tensor_value_info(output_name(blob), TensorProto.FLOAT, [batch, size]))
    name = _input_name(net.input_blob)
    made.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *net.input_shape]))
    serialized: bytes = graph.model.SerializeToString()
    return serialized


def _lowered(
    net: Net,
    graph: _Graph,
    step: Step,
    values: dict[int, tuple[str, Shape]],
    weights: Weights | None,
    doubtful: set[int],
) -> Lowered:
    layer = step.layer
    bottoms, shapes, fixed = [], [], []
    for value, bottom in zip(step.reads, layer.bottoms, strict=True):
        alone = net.one_by_one is not None or value in net.constants
        tensor, made = _made(net, values, value, bottom)
        bottoms.append(_as_named(graph, (graph.read(tensor), made), _known(net, bottom), alone))
        shapes.append(_known(net, bottom))
        fixed.append(alone)
    if weights is None:
        weights = [weight.array() for weight in net.weights.get(layer.key, ())]
    tops = tuple(_known(net, top) for top in layer.tops)
    return Lowered(
        layer,
        tuple(bottoms),
        tuple(shapes),
        tops,
        weights,
        tuple(fixed),
        _read(net, step),
        bool(doubtful.intersection(step.reads)),
    )


def _read(net: Net, step: Step) -> tuple[bool, ...]:
    needed = set(net.values.values()).union(*(other.reads for other in net.layers))
    return tuple(value in needed for value in step.writes)


def _made(net: Net, values: dict[int, tuple[str, Shape]], value: int, blob: str) -> tuple[str, Shape]:
    if value not in values:
        raise ModelError(
            f"{net.source}: the onnxruntime engine does not make blob {blob!r}: "
            'set engine = "caffe" where real Caffe is installed'
        )
    return values[value]


def output_name(blob: str) -> str:
    """The name of a blob's output in the ONNX graph."""
    return f"blob {blob}"


def _input_name(blob: str) -> str:
    return f"input {blob}"


def _known(net: Net, blob: str) -> Shape:
    shape = net.shapes[blob]
    assert shape is not None  # every layer is of a known type
    return shape


def _as_named(graph: _Graph, value: tuple[str, Shape], shape: Shape, fixed: bool) -> str:
    """The tensor of a value in the shape of the blob that is read: blobs that share memory may differ in shape."""
    tensor, made = value
    return tensor if made == shape else graph.reshape(tensor, shape, fixed)
