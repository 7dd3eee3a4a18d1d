"""An ONNX file's structure without its weights: the large arrays stay in the file's bytes, and what nothing here needs
(comments, training, functions) is left out.

protobuf takes up to 80 times the bytes of what it parses, so that a hostile file of 2 GB would take all memory; a
structure of MOST_BYTES takes 1.4 GB at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featd.net.wire import BYTES, WireError, fields

MOST_BYTES: Final = 1 << 24
MOST_PARTS: Final = 200_000
"""Nodes, attributes and arrays."""
LARGE_BYTES: Final = 1 << 10
"""Arrays of at least so many bytes are weights. Shapes and the like, which ONNX Runtime needs while it loads, are
smaller."""

Place = tuple[int, ...]
"""Of an array: (index of the initializer,), or (index of the node, index of its attribute)."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "model", "graph", "node", "attribute", "tensor"
_BELOW: Final = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR},
    _TENSOR: {},
}
"""Message -> the fields that are gone into. All numbers are those of onnx.proto."""
_LEFT_OUT: Final = {
    _MODEL: {6, 14, 20, 25, 26},
    _GRAPH: {10, 14, 16},
    _NODE: {6, 9, 10},
    _ATTRIBUTE: {13},
    _TENSOR: {12, 16},
}
_FLOAT_DATA, _RAW_DATA = 4, 9


@dataclass(frozen=True, slots=True, eq=False)
class Large:
    """The bytes of a large array, little-endian, in C order. `floats`: the file says by the field that they are of
    float32."""

    data: memoryview
    floats: bool


class Structure:
    """`model`: the serialized ModelProto without the arrays in `large`. WireError where `view` is no such message."""

    def __init__(self, view: memoryview) -> None:
        self.large: dict[Place, Large] = {}
        self._parts = 0
        self.model = bytes(self._slim(view, _MODEL, ()))

    def _slim(self, view: memoryview, kind: str, place: Place) -> bytearray:
        slim = bytearray()
        counts: dict[int, int] = {}
        for number, wire, _, payload in fields(view):
            if number in _LEFT_OUT[kind]:
                continue
            if wire == BYTES and (below := _BELOW[kind].get(number)):
                at = counts[number] = counts.get(number, -1) + 1
                self._count(below, at)
                _append(slim, number, wire, self._slim(payload, below, _place(place, kind, number, at)))
            elif kind == _TENSOR and wire == BYTES and self._is_large(number, payload, place):
                continue
            else:
                _append(slim, number, wire, payload)
            if len(slim) > MOST_BYTES:
                raise WireError(
                    f"it has more than {MOST_BYTES >> 20} MiB besides its weights, which nets for pictures do not need"
                )
        return slim

    def _count(self, below: str, at: int) -> None:
        if at and below == _GRAPH:
            raise WireError("it holds several graphs")
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise WireError(f"it has more than {MOST_PARTS:,} nodes, attributes and arrays")

    def _is_large(self, number: int, payload: memoryview, place: Place) -> bool:
        """Whether this is the data of a large array, which is then kept apart."""
        if number not in (_FLOAT_DATA, _RAW_DATA) or len(payload) < LARGE_BYTES:
            return False
        if place in self.large:
            raise WireError("an array holds its numbers twice")
        self.large[place] = Large(payload, number == _FLOAT_DATA)
        return True


def _place(place: Place, kind: str, number: int, at: int) -> Place:
    """Of a part of a message at `place`."""
    if kind == _ATTRIBUTE:
        if at:
            raise WireError("an attribute has two arrays")
        return place
    return () if kind == _MODEL else (*place, at)


def _append(to: bytearray, number: int, wire: int, payload: bytearray | memoryview) -> None:
    _append_varint(to, number << 3 | wire)
    if wire == BYTES:
        _append_varint(to, len(payload))
    to += payload


def _append_varint(to: bytearray, value: int) -> None:
    while value > 0x7F:
        to.append(value & 0x7F | 0x80)
        value >>= 7
    to.append(value)
