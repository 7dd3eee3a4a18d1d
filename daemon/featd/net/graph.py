"""The graph of a net: which value each layer reads and writes, and which layers some blobs need.

A blob of Caffe is a piece of memory, not a value: an in-place layer overwrites its blob, and blobs that share memory
(the tops of Flatten, Reshape and Split) change together. Here each write makes a new value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from featd.errors import ModelError
from featd.net import schema
from featd.net.schema import Message

INPUT: Final = "Input"
CONSTANTS: Final = frozenset({"DummyData", "Parameter"})
"""Layers without bottoms whose blobs are filled once, when Caffe loads the net."""
_SHARING: Final = frozenset({"Flatten", "Reshape", "Split", "Concat"})
"""Layers whose tops share memory with their only bottom (Blob::ShareData); see `shares` for others that may."""

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the TEST phase, in the current form, also where the file has an older one."""

    index: int
    """Place among the file's layers; -1 for an `input` of the old form."""
    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    param: Message
    """The LayerParameter with this layer's settings."""
    key: str = ""
    """The name, made unique where several layers have the same one. Weights are found by it."""
    rewritten: bool = False
    """Whether `param` differs from the file: see featd.net.upgrade."""

    def __str__(self) -> str:
        return f"layer {self.name!r} of type {self.type}"


@dataclass(frozen=True, slots=True)
class Step:
    """A layer and the numbers of the values that it reads and writes."""

    layer: Layer
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """All steps in the net's order, and the value that each blob holds at the end of a forward."""

    steps: tuple[Step, ...]
    blobs: dict[str, int]
    """Blob name -> value, in the order in which the net makes them."""

    def needed(self, blobs: tuple[str, ...]) -> tuple[Step, ...]:
        """The steps that `blobs` need, in order."""
        wanted = {self.blobs[blob] for blob in blobs}
        steps = []
        for step in reversed(self.steps):
            if wanted.intersection(step.writes):
                wanted.update(step.reads)
                steps.append(step)
        return tuple(reversed(steps))


def trace(layers: tuple[Layer, ...], source: str) -> Graph:
    """Follow every blob through the layers. ModelError where a bottom is unknown or a top is made twice."""
    holds: dict[str, int] = {}
    families: dict[str, set[str]] = {}
    frozen: set[str] = set()
    steps: list[Step] = []
    count = 0
    for layer in layers:
        for bottom in layer.bottoms:
            if bottom not in holds:
                raise ModelError(f"{source}: {layer} reads blob {bottom!r}, which no layer before it makes")
        reads = tuple(holds[bottom] for bottom in layer.bottoms)
        writes = []
        for at, top in enumerate(layer.tops):
            in_place = at < len(layer.bottoms) and layer.bottoms[at] == top
            if top in holds and not in_place:
                raise ModelError(f"{source}: {layer} makes blob {top!r}, which another layer made before it")
            if in_place and top in frozen:
                raise ModelError(
                    f"{source}: {layer} overwrites a blob that is filled only once: in Caffe it would change with "
                    "every image; give its top another name than its bottom"
                )
            for name in families.get(top, {top}):
                holds[name] = count
            if layer.type in CONSTANTS or (shares(layer) and layer.bottoms[0] in frozen):
                frozen.add(top)
            if shares(layer) and not in_place:
                family = families.setdefault(layer.bottoms[0], {layer.bottoms[0]})
                family.add(top)
                families[top] = family
            writes.append(count)
            count += 1
        steps.append(Step(layer, reads, tuple(writes)))
    return Graph(tuple(steps), holds)


def shares(layer: Layer) -> bool:
    """Whether the layer's tops are its bottom's memory under other names and shapes."""
    if len(layer.bottoms) != 1:
        return False
    if layer.type == "Permute":
        order = list(layer.param.permute_param.order)
        return order == list(range(len(order)))
    return layer.type in _SHARING or (layer.type == "Slice" and len(layer.tops) == 1)


def varying(steps: tuple[Step, ...], inputs: set[str]) -> set[int]:
    """The values that depend on the picture; all others are the same for every one."""
    found: set[int] = set()
    for step in steps:
        if step.layer.type == INPUT:
            found.update(v for v, top in zip(step.writes, step.layer.tops, strict=True) if top in inputs)
        elif found.intersection(step.reads):
            found.update(step.writes)
    return found


def clash(steps: tuple[Step, ...]) -> str | None:
    """Why real Caffe aborts on these steps although the ONNX engine can run them, or None.

    Where a blob has two readers Caffe splits it; a reader that works in place then makes its top a second time.
    STOCHASTIC pooling exists on GPUs only, and aborts in the middle of a forward on the CPU.
    """
    readers: dict[int, list[Layer]] = {}
    for step in steps:
        if step.layer.type in ("Pooling", "SPP"):
            param = (
                step.layer.param.pooling_param if step.layer.type == "Pooling" else step.layer.param.spp_param
            )
            if param.pool == schema.ENUMS["PoolingParameter.PoolMethod"]["STOCHASTIC"]:
                return f"{step.layer}: STOCHASTIC pooling, which Caffe does not do on the CPU"
        for value in step.reads:
            readers.setdefault(value, []).append(step.layer)
    for layers in readers.values():
        writer = next((layer for layer in layers if set(layer.bottoms) & set(layer.tops)), None)
        if writer is not None and len(layers) > 1:
            return f"{writer} overwrites a blob that another layer reads as it was"
    return None
