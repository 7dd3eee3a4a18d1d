"""Protobuf's wire format, read without protobuf: files of weights are too large for it, and hostile ones become much
larger in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
"""Wire types."""


class WireError(ValueError):
    """The bytes are not a message."""


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. WireError."""
    value = shift = 0
    while True:
        if at >= len(view):
            raise WireError("it ends in the middle of a number")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise WireError(f"byte {at} does not belong to a message")


def fields(view: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(field number, wire type, varint value, payload) of each field of a message, at its top level. WireError."""
    at = 0
    while at < len(view):
        tag, at = varint(view, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag > 0xFFFF_FFFF:
            raise WireError("it holds a field without a number")
        value, end = 0, at
        if wire == VARINT:
            value, end = varint(view, at)
        elif wire == BYTES:
            size, at = varint(view, at)
            end = at + size
        elif wire in (FIXED32, FIXED64):
            end = at + (4 if wire == FIXED32 else 8)
        else:
            raise WireError(f"field {number} has an unknown wire type")
        if end > len(view):
            raise WireError(f"it ends {end - len(view):,} bytes too early (truncated)")
        yield number, wire, value, view[at:end]
        at = end
