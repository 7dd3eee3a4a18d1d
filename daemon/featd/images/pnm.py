"""What featd reads of a PBM, PGM or PPM itself: its size and its highest value."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.images.flaws import EndsEarlyError, OutOfOrderError

_BLANK = rb"(?:[ \t\r\n\v\f]|#[^\n]*\n)"
_START = re.compile(rb"P[1-6]" + _BLANK + rb"+\d")
_NUMBER = re.compile(_BLANK + rb"*(\d{1,9})(?=[ \t\r\n\v\f#])")
_MOST = 65_535


def is_one(data: bytes) -> bool:
    """Whether the data begins like one; P and a digit alone also begin English text."""
    return data[:1] == b"P" and _START.match(data) is not None


def size(data: bytes) -> tuple[int, int]:
    """(width, height)."""
    width, height, _ = _header(data)
    return width, height


def is_complete(data: bytes) -> bool:
    """Whether the data reaches the end of the picture, where numbers are not written as text."""
    width, height, end = _header(data)
    kind = data[1:2]
    if kind in b"123":
        return True
    row = (width + 7) // 8 if kind == b"4" else width * (3 if kind == b"6" else 1)
    return len(data) >= end + 1 + row * height * (2 if highest(data) > 255 else 1)


def highest(data: bytes) -> int:
    """The value that stands for white."""
    if data[1:2] in b"14":
        return 255
    found = _NUMBER.match(data, _header(data)[2])
    if found is None:
        raise EndsEarlyError
    value = int(found[1])
    if not 0 < value <= _MOST:
        raise OutOfOrderError(f"a highest value of {value}")
    return value


def with_last_blank(data: bytes) -> bytes:
    """With a newline behind the last number: OpenCV refuses a picture whose last number ends with the file."""
    return data + b"\n" if data[1:2] in b"123" else data


def unscaled_white(data: bytes) -> int:
    """The value that stands for white where OpenCV does not scale by it, and gives a dark picture; else 0. It scales
    numbers written as text up to 255, and takes 65535 for 16 bits."""
    white = highest(data)
    as_text = data[1:2] in b"123"
    return 0 if white in (255, _MOST) or (as_text and white < 255) else white


def grey_levels(values: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    """The values 0 to `white` as 0 to 255, rounded as by Pillow."""
    levels = np.minimum(values, white).astype(np.uint32)
    return np.asarray((levels * 255 + white // 2) // white, np.uint8)


def _header(data: bytes) -> tuple[int, int, int]:
    """(width, height, offset behind them)."""
    numbers = []
    at = 2
    for _ in range(2):
        found = _NUMBER.match(data, at)
        if found is None:
            raise EndsEarlyError
        numbers.append(int(found[1]))
        at = found.end()
    return numbers[0], numbers[1], at
