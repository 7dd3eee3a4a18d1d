"""What featd reads of a GIF itself: its first picture."""

from __future__ import annotations

import re
import struct

from featd.images.flaws import EndsEarlyError, OutOfOrderError

_BLOCK = re.compile(rb"[!,;]")  # an extension, a picture, the trailer
_PICTURE, _TRAILER = 0x2C, 0x3B


def size(data: bytes) -> tuple[int, int]:
    """(width, height) of the screen, or of what the first picture needs: many GIFs have a screen of 0x0, and browsers
    and Pillow then take the picture's size."""
    at = _find_picture(data)[-1]
    screen = struct.unpack_from("<HH", data, 6)
    left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
    return max(screen[0], left + width), max(screen[1], top + height)


def is_complete(data: bytes) -> bool:
    """Whether the data reaches the end of the first picture."""
    return _behind_blocks(data, _picture_data(data, _find_picture(data)[-1])) < len(data)


def first_picture(data: bytes) -> bytes:
    """The GIF with its first picture alone, on a screen that holds it.

    OpenCV walks through the whole file first: it refuses a picture that is all there because a later one is cut, or
    because the trailer is missing. It gives no picture where pixels are missing.
    """
    *extensions, picture = _find_picture(data)
    blocks = [data[at : _behind_blocks(data, at + 2)] for at in extensions]
    blocks.append(data[picture : _behind_blocks(data, _picture_data(data, picture))])
    head = data[:6] + struct.pack("<HH", *size(data)) + data[10 : _behind_head(data)]
    return head + b"".join(block + b"\0" for block in blocks) + b";"


def _find_picture(data: bytes) -> list[int]:
    """The offsets of the extensions before the first picture, then that of its descriptor. Bytes between blocks are
    skipped, as Pillow does."""
    at = _behind_head(data)
    found = []
    while start := _BLOCK.search(data, at):
        at = start.start()
        found.append(at)
        if data[at] == _PICTURE:
            return found
        if data[at] == _TRAILER:
            raise OutOfOrderError("no picture before the trailer")
        at = _behind_blocks(data, at + 2) + 1
    raise EndsEarlyError


def _behind_head(data: bytes) -> int:
    return 13 + _colours(data[10])


def _colours(flags: int) -> int:
    """Bytes of the table of colours that `flags` announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _picture_data(data: bytes, at: int) -> int:
    """The offset of the first block of the picture whose descriptor is at `at`."""
    return at + 11 + _colours(data[at + 9])


def _behind_blocks(data: bytes, at: int) -> int:
    """The offset of the zero that ends a chain of blocks, or the data's length if only that is missing."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    if at > len(data):
        raise EndsEarlyError
    return at
