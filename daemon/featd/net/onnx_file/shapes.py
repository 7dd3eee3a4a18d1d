"""Types and shapes of all tensors, inferred by the library `onnx` in a throw-away process with a limit on its memory.
It is native code, and a hostile file may make it run for ever, take all memory or die."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from featd.errors import FeatdError, ModelError, first_line
from featd.processes.throwaway import Throwaway

MOST_SECONDS: Final = 60.0
MOST_MEMORY: Final = 2 << 30
MOST_NUMBERS: Final = 1 << 28
"""In one tensor of one image; of all tensors together, 4 times as many. As for nets of Caffe."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor: the number of its type in onnx.TensorProto (0: unknown, or no tensor at all), and its
    axes (None: unknown, also a single one)."""

    type: int
    axes: tuple[int | None, ...] | None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Where all axes are known."""
        if self.axes is None or None in self.axes:
            return None
        return tuple(axis for axis in self.axes if axis is not None)


def infer(model: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a model whose inputs have a fixed shape. ModelError where it takes too much time or memory."""

    def work() -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = _used() + MOST_MEMORY
        resource.setrlimit(
            resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard)
        )
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            found = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:  # whatever the library has
            raise ModelError(f"{source}: its shapes cannot be worked out: {first_line(error)}") from None
        graph = found.graph
        return json.dumps(
            {value.name: _told(value) for value in (*graph.input, *graph.value_info, *graph.output)}
        )

    try:
        answer = Throwaway(work).wait(MOST_SECONDS, "working out the shapes of the net")
    except FeatdError as error:
        raise ModelError(f"{source}: {error}: refused") from None
    if answer.code < 0:
        raise ModelError(
            f"{source}: the library onnx died of {signal.Signals(-answer.code).name} while it worked out the shapes:"
            " the file is damaged or hostile"
        )
    if answer.code:
        raise ModelError(
            answer.text if source in answer.text else f"{source}: {answer.text or answer.last_words}"
        )
    return {
        name: Tensor(kind, None if axes is None else tuple(axes))
        for name, (kind, axes) in json.loads(answer.text).items()
    }


def check_sizes(tensors: Mapping[str, Tensor], names: Mapping[str, str], batch: int, source: str) -> None:
    """ModelError where tensors are larger than any net's. `names`: the tensors that count, each with its node;
    `batch`: images that they are for."""
    total = 0
    for name, node in names.items():
        shape = tensors[name].shape if name in tensors else None
        numbers = 1
        for axis in shape or (0,):
            numbers *= max(axis, 0)
        total += numbers
        if numbers > MOST_NUMBERS * batch or total > 4 * MOST_NUMBERS * batch:
            what = f"tensor {name!r}" if numbers > MOST_NUMBERS * batch else f"all tensors up to {name!r}"
            raise ModelError(
                f"{source}: {node}: {what} would hold {max(numbers, total) // batch:,} numbers for one image; the limit"
                f" is {MOST_NUMBERS:,} in one and {4 * MOST_NUMBERS:,} in all"
            )


def _told(value: Any) -> tuple[int, list[int | None] | None]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return 0, None
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, [
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else None
        for axis in tensor.shape.dim
    ]


def _used() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
