"""Channel order, mean and scale as the first nodes of a graph, so that pictures travel to the device as uint8: the same
float32 operations in the same order as `featd.preprocess.apply.prepare`, and the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from featd.preprocess.apply import cropped_mean
from featd.preprocess.spec import PreprocessSpec

_PREFIX = "featd pixels"


def prepend(model: Any, spec: PreprocessSpec, channels_last: bool = False) -> None:
    """Change a ModelProto whose only input takes prepared pictures, float32 (n, C, H, W), or `channels_last`
    (n, H, W, C): it then takes pixels, uint8 (n, H, W, C) as decoders make them, under another name."""
    graph = model.graph
    [entry] = graph.input
    axes = list(entry.type.tensor_type.shape.dim)
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in taken):
        prefix += "'"
    nodes: list[Any] = []

    def constant(kind: str, values: npt.NDArray[Any]) -> str:
        graph.initializer.append(
            helper.make_tensor(
                f"{prefix} {kind}",
                helper.np_dtype_to_tensor_dtype(values.dtype),
                values.shape,
                values.tobytes(),
                raw=True,
            )
        )
        return f"{prefix} {kind}"

    def add(op: str, *constants: str, **attributes: Any) -> None:
        made = f"{prefix} {len(nodes) + 1}"
        last = nodes[-1].output[0] if nodes else prefix
        nodes.append(helper.make_node(op, [last, *constants], [made], made, **attributes))

    def by_channel(values: list[Any]) -> npt.NDArray[np.float32]:
        """One number or plane per channel, to be spread over a picture."""
        array = np.array(values, np.float32)
        array = array.reshape(len(values), *(array.shape[1:] or (1, 1)))
        return array.transpose(1, 2, 0) if channels_last else array

    if not channels_last:
        add("Transpose", perm=[0, 3, 1, 2])  # first, while a number is one byte
    if spec.swaps_channels:
        order = np.array([2, 1, 0, 3][: spec.depth], np.int64)
        add("Gather", constant("order", order), axis=3 if channels_last else 1)
    add("Cast", to=TensorProto.FLOAT)
    mean = by_channel(list(cropped_mean(spec)))
    if mean.any():
        add("Sub", constant("mean", mean))
    if spec.scales:
        add("Mul", constant("factors", by_channel(list(spec.factors))))
    nodes[-1].output[0] = entry.name
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    # Axes of any length stay so, since known ones decide which operators ONNX Runtime joins, and so the last bits.
    kind = entry.type.tensor_type
    kind.elem_type = TensorProto.UINT8
    del kind.shape.dim[:]
    kind.shape.dim.extend(axes if channels_last else [axes[at] for at in (0, 2, 3, 1)])
    entry.name = prefix
