"""The Crop of the branch in which FCN was made (V1, `type: CROP`): it has no offset in the file and works it out.

Each convolution and pooling maps coordinates linearly; the offset is the shift between the two bottoms, followed back
to a blob that both come from (coord_map.py of pycaffe does the same for new definitions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final, TypeAlias

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import Layer
from featd.net.layers.convolution import window

_Line: TypeAlias = tuple[Fraction, Fraction]
"""(a, b): a coordinate of the bottom x is a * x + b in the top."""
_Map: TypeAlias = tuple[_Line, _Line]
"""Along height and width."""
_SAME: Final[_Line] = (Fraction(1), Fraction(0))
_PASS: Final = frozenset(
    {
        "AbsVal", "BN", "BNLL", "BatchNorm", "Bias", "Concat", "Dropout", "ELU", "Eltwise", "Exp", "LRN", "Log", "MVN",
        "PReLU", "Power", "ReLU", "Scale", "Sigmoid", "Softmax", "Split", "TanH", "Threshold",
    }
)  # fmt: skip
"""Layers whose top has the places of its bottoms."""


def with_offsets(layers: Sequence[Layer], source: str) -> list[Layer]:
    """The layers, each Crop of theirs without `crop_param` given its offset. ModelError where there is none."""
    parents: list[list[tuple[int, _Map]]] = []
    holds: dict[str, int] = {}
    made = []
    for layer in layers:
        bottoms = [holds[bottom] for bottom in layer.bottoms if bottom in holds]
        if layer.type == "Crop" and not layer.param.HasField("crop_param") and len(bottoms) == 2:
            layer = _with_offset(layer, _offset(bottoms[0], bottoms[1], parents, f"{source}: {layer}"))
        steps = [(bottom, move) for bottom in bottoms[: _read(layer)] if (move := _map(layer)) is not None]
        for top in layer.tops:
            holds[top] = len(parents)
            parents.append(steps)
        made.append(layer)
    return made


def _read(layer: Layer) -> int:
    return 1 if layer.type == "Crop" else len(layer.bottoms)


def _map(layer: Layer) -> _Map | None:
    """How a layer moves places; None: its top has no places."""
    if layer.type in _PASS:
        return (_SAME, _SAME)
    if layer.type == "Crop":
        offsets = [*layer.param.crop_param.offset] or [0]
        down, right = (offsets * 2)[-2:]
        return ((Fraction(1), Fraction(-down)), (Fraction(1), Fraction(-right)))
    if layer.type in ("Convolution", "Deconvolution"):
        at = window(layer, 2)
        kernel = tuple(one * (size - 1) + 1 for one, size in zip(at.dilation, at.kernel, strict=True))
        windows = list(zip(kernel, at.stride, at.pad, strict=True))
    elif layer.type == "Pooling" and not layer.param.pooling_param.global_pooling:
        param = layer.param.pooling_param
        names = (("kernel", "kernel_size"), ("stride", "stride"), ("pad", "pad"))
        high, wide = (
            tuple(getattr(param, name + end) or getattr(param, whole) for name, whole in names)
            for end in ("_h", "_w")
        )
        windows = [high, wide]
    else:
        return None
    if any(stride == 0 for _, stride, _ in windows):
        return None  # it is refused when its shape is inferred
    lines = [_line(*one) for one in windows]
    if layer.type == "Deconvolution":
        lines = [(1 / a, -b / a) for a, b in lines]
    return (lines[0], lines[1])


def _line(kernel: int, stride: int, pad: int) -> _Line:
    return (Fraction(1, stride), (pad - Fraction(kernel - 1, 2)) / stride)


def _back(start: int, parents: Sequence[Sequence[tuple[int, _Map]]]) -> dict[int, _Map]:
    """Every blob that `start` comes from, nearest first, and how its places are found in `start`."""
    found: dict[int, _Map] = {start: (_SAME, _SAME)}
    queue = [start]
    for here in queue:
        for parent, move in parents[here]:
            if parent not in found:
                high, wide = ((a * c, a * d + b) for (a, b), (c, d) in zip(found[here], move, strict=True))
                found[parent] = (high, wide)
                queue.append(parent)
    return found


def _offset(first: int, second: int, parents: Sequence[Sequence[tuple[int, _Map]]], said: str) -> list[int]:
    one, other = _back(first, parents), _back(second, parents)
    common = next((blob for blob in other if blob in one), None)
    if common is None:
        raise ModelError(f"{said}: its bottoms come from no common blob: write crop_param with an offset")
    offsets = []
    for (a, b), (c, d) in zip(one[common], other[common], strict=True):
        if a != c or (b - d).denominator != 1 or b < d:
            raise ModelError(f"{said}: its bottoms lie in no whole distance: write crop_param with an offset")
        offsets.append(int(b - d))
    return offsets


def _with_offset(layer: Layer, offsets: Sequence[int]) -> Layer:
    param = schema.new("LayerParameter")
    param.CopyFrom(layer.param)
    param.crop_param.axis = 2
    param.crop_param.offset.extend(offsets)
    return replace(layer, param=param, rewritten=True)
