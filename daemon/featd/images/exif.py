"""The orientation in EXIF, where OpenCV misses it, and the turns themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

_ORIENTATION = 274
_LONGS = (4, 9)
_TYPES = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}
_MOST_ENTRIES = 1000

_TURNS: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def turn(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """`pixels` (H, W, ...) upright; orientation as in EXIF, 1 to 8."""
    return _TURNS[orientation](pixels) if orientation in _TURNS else pixels


def missed_orientation(data: bytes, start: int) -> int:
    """The orientation if it is a LONG in big-endian EXIF, else 1: OpenCV reads the upper half of the number. `start`:
    where the EXIF begins, negative where there is none."""
    if start < 0 or data[start : start + 4] != b"MM\0*":
        return 1
    kind, value = _find_orientation(data, start)
    return value if kind in _LONGS else 1


def orientation(data: bytes, start: int) -> int:
    """The orientation, 1 where there is none."""
    if start < 0 or data[start : start + 4] not in (b"MM\0*", b"II*\0"):
        return 1
    return _find_orientation(data, start)[1]


def _find_orientation(data: bytes, start: int) -> tuple[int, int]:
    """(the field's type, its value); (0, 1) where it is not found."""
    order = ">" if data[start : start + 1] == b"M" else "<"
    try:
        at = start + struct.unpack_from(order + "I", data, start + 4)[0]
        (count,) = struct.unpack_from(order + "H", data, at)
        for number in range(min(count, _MOST_ENTRIES)):
            tag, kind = struct.unpack_from(order + "HH", data, at + 2 + 12 * number)
            if tag == _ORIENTATION and kind in _TYPES:
                return kind, struct.unpack_from(order + _TYPES[kind], data, at + 10 + 12 * number)[0]
            if tag == _ORIENTATION:
                break
    except struct.error:
        pass
    return 0, 1


def webp_start(data: bytes) -> int:
    """Where the EXIF of a WebP begins, or negative."""
    at = data.find(b"EXIF")
    return at if at < 0 else at + (14 if data[at + 8 : at + 14] == b"Exif\0\0" else 8)
