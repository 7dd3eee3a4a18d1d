"""The registry of layer types: what featd must know about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from featd.errors import ModelError
from featd.net.graph import Layer, Shape

Weights: TypeAlias = Sequence[npt.NDArray[np.float32]]


class Builder(Protocol):
    """What lowering writes to: one ONNX graph in the making. Tensors are named by strings."""

    def node(self, op: str, inputs: Sequence[str], /, **attributes: Any) -> str:
        """Add a node of one output; returns the output's name."""

    def nodes(self, op: str, inputs: Sequence[str], count: int, /, **attributes: Any) -> list[str]:
        """Add a node of `count` outputs; returns their names."""

    def constant(self, array: npt.NDArray[Any]) -> str:
        """Add an array as an initializer; returns its name."""

    def scalar(self, value: float) -> str:
        """A float32 constant of rank 0."""

    def reshape(self, tensor: str, shape: Shape, fixed: bool = False) -> str:
        """`tensor` with its batch axis kept and the others as in `shape` (whose first entry is ignored), or,
        if it is `fixed`, just as in `shape`."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """One layer to lower, with everything that its function may use."""

    layer: Layer
    bottoms: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Of the bottoms, with batch 1."""
    tops: tuple[Shape, ...]
    weights: Weights
    fixed: tuple[bool, ...]
    """Of each bottom, whether its shape is known in full: a constant, or one image at a time."""
    read: tuple[bool, ...] = ()
    """Of each top, whether anything needs it."""
    doubtful: bool = False
    """Whether a bottom may hold numbers that are not finite, which Caffe and ONNX Runtime compare differently."""


Shapes: TypeAlias = Callable[[Layer, Sequence[Shape]], list[Shape]]
Lower: TypeAlias = Callable[[Builder, Lowered], Sequence[str]]
Mixes: TypeAlias = Callable[[Layer, Sequence[Shape]], str | None]


@dataclass(frozen=True, slots=True)
class LayerType:
    """What featd knows of a Caffe layer type."""

    name: str
    shapes: Shapes
    """Shapes of the tops, from the layer and the shapes of its bottoms."""
    params: Shapes
    """Shapes of the weights that the layer holds, in Caffe's order."""
    lower: Lower
    """Writes the layer to an ONNX graph; returns one tensor per top. The last tops may be left out: whoever reads
    them is then told that the onnxruntime engine does not make them."""
    bottoms: tuple[int, int]
    """Fewest and most bottoms that Caffe takes: another number aborts it."""
    tops: tuple[int, int]
    in_place: bool
    """Whether Caffe computes right when a top is a bottom."""
    mixes: Mixes
    """Why an image's numbers depend on the others in its batch although every shape keeps them apart, or None."""


MANY: Final = 1 << 30
"""As many bottoms or tops as one likes."""

TYPES: Final[dict[str, LayerType]] = {}


def same(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Shapes of a layer whose top looks like its first bottom."""
    return [bottoms[0]]


def none(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Weight shapes of a layer without weights."""
    return []


def apart(layer: Layer, bottoms: Sequence[Shape]) -> str | None:
    """A layer that keeps the images of a batch apart."""
    return None


def register(
    name: str,
    shapes: Shapes = same,
    params: Shapes = none,
    *,
    bottoms: tuple[int, int] = (1, 1),
    tops: tuple[int, int] = (1, 1),
    in_place: bool = False,
    mixes: Mixes = apart,
) -> Callable[[Lower], Lower]:
    """Put a layer type into the registry; decorates the function that lowers it."""

    def add(lower: Lower) -> Lower:
        TYPES[name] = LayerType(name, shapes, params, lower, bottoms, tops, in_place, mixes)
        return lower

    return add


def axis_of(layer: Layer, axis: int, rank: int) -> int:
    """A Caffe axis (negative: from the end) as an index. ModelError when out of range."""
    if not -rank <= axis < rank:
        raise ModelError(f"{layer}: axis {axis} is out of range for a blob of {rank} axes")
    return axis % rank


def cannot(layer: Layer, why: str) -> ModelError:
    """A layer that only the onnxruntime engine cannot run: the error that names the way out."""
    return ModelError(
        f'{layer}: {why}, which the onnxruntime engine does not run: set engine = "caffe" where it is installed'
    )
