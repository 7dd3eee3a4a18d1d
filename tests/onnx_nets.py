"""Small ONNX files, built in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
OPSET = 17


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; names are separated by spaces, and `-` is none."""
    return helper.make_node(
        kind,
        [name.replace("-", "") if name == "-" else name for name in inputs.split()],
        outputs.split(),
        **attributes,
    )


def model(
    nodes: Sequence[Any],
    arrays: dict[str, Array] | None = None,
    *,
    shape: Sequence[int | str] = ("n", 3, 32, 32),
    outputs: Sequence[str] = ("vector",),
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[Any] = (),
    opset: int = OPSET,
    domains: Sequence[str] = (),
) -> Any:
    """A model with the input `picture` of this shape."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("picture", kind, shape), *inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (arrays or {}).items()],
    )
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in (("", opset), *((d, 1) for d in domains))
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(made: Any, folder: Path, name: str = "net.onnx") -> str:
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return str(path)


def small(
    *,
    shape: Sequence[int | str] = ("n", 3, 32, 32),
    outputs: Sequence[str] = ("vector",),
    half: bool = False,
    last: bool = False,
    **more: Any,
) -> Any:
    """Two convolutions and a dense layer. The tensors: /relu1, /relu2, pooled, flat, vector (24), ids (int64)."""
    random = np.random.default_rng(3)
    dtype = np.float16 if half else np.float32

    def weights(*dims: int) -> Array:
        return (random.standard_normal(dims) / np.sqrt(np.prod(dims[1:]))).astype(dtype)

    arrays = {
        "w1": weights(8, 3, 3, 3),
        "b1": weights(8, 1)[:, 0],
        "w2": weights(16, 8, 3, 3),
        "w3": weights(16, 24),
    }
    first = "nchw" if last else "picture"
    nodes = [
        *([node("Transpose", "picture", "nchw", perm=[0, 3, 1, 2])] if last else []),
        node("Conv", f"{first} w1 b1", "/conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "/conv1", "/relu1"),
        node("Conv", "/relu1 w2", "/conv2", pads=[1, 1, 1, 1]),
        node("Relu", "/conv2", "/relu2"),
        node("GlobalAveragePool", "/relu2", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat w3", "vector"),
        node("ArgMax", "vector", "ids", axis=1),
    ]
    return model(
        nodes,
        arrays,
        shape=shape,
        outputs=outputs,
        kind=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
        **more,
    )


def plain(path: str, picture: Array, tensors: Sequence[str]) -> list[Array]:
    """What ONNX Runtime itself gives for these tensors, as an array each."""
    return plain_of_each(path, [picture], tensors)[0]


def plain_of_each(
    path: str, pictures: Sequence[Array], tensors: Sequence[str], without: Sequence[str] = ()
) -> list[list[Array]]:
    """The same for several inputs, one after the other. `without`: optimizers that are not used."""
    import onnxruntime

    made = onnx.load(path)
    have = {value.name for value in made.graph.output}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in have)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )
    name = session.get_inputs()[0].name
    return [list(session.run(list(tensors), {name: picture})) for picture in pictures]
