"""The orientation in EXIF, where OpenCV misses it, and the turns themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

_ORIENTATION = 274
_LONGS = {4: ">I", 9: ">i"}
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
    try:
        at = start + struct.unpack_from(">I", data, start + 4)[0]
        (count,) = struct.unpack_from(">H", data, at)
        for number in range(min(count, _MOST_ENTRIES)):
            tag, kind = struct.unpack_from(">HH", data, at + 2 + 12 * number)
            if tag == _ORIENTATION:
                return (
                    int(struct.unpack_from(_LONGS[kind], data, at + 10 + 12 * number)[0])
                    if kind in _LONGS
                    else 1
                )
    except struct.error:
        pass
    return 1


def webp_start(data: bytes) -> int:
    """Where the EXIF of a WebP begins, or negative."""
    at = data.find(b"EXIF")
    return at if at < 0 else at + (14 if data[at + 8 : at + 14] == b"Exif\0\0" else 8)
