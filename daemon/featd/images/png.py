"""What featd reads of a PNG itself: its size, and the chunks of its default picture."""

from __future__ import annotations

import struct
import zlib

from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError

_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_END = b"\0\0\0\0IEND\xaeB`\x82"


def size(data: bytes) -> tuple[int, int]:
    """(width, height)."""
    if data[12:16] == b"CgBI":
        raise UnsupportedError("it is of Apple's own kind (CgBI), which other programs do not read")
    if len(data) >= 16 and data[12:16] != b"IHDR":
        raise OutOfOrderError("no IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def exif_start(data: bytes) -> int:
    """Where EXIF begins, or negative."""
    at = data.find(b"eXIf")
    return at + 4 if at >= 0 else at


def has_transparency(data: bytes) -> bool:
    """Whether a palette's entries, or one colour, are transparent."""
    return 0 <= data.find(b"tRNS") < data.find(b"IDAT")


def is_complete(data: bytes) -> bool:
    """Whether the data reaches the end of its last chunk."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND":
            return bool(at <= len(data))
    return False


def default_picture(data: bytes) -> bytes:
    """The PNG as a program without animation sees it, with an end.

    - `imdecode` gives the first picture of an animation, of which the default picture need not be a part; `imread`
      and other programs give the default picture.
    - OpenCV refuses a picture without an end marker, or with something else in its place. libpng still refuses a
      picture of which rows are missing.
    - No chunk may claim more bytes than there are: OpenCV 5 allocates what it claims, and one flipped bit cost 3.8 GB
      and 7 s (file of 14 kB).

    EndsEarlyError where there is no picture data.
    """
    at, start = 8, 0
    kept: list[bytes] = []
    found = False
    checksum = b""
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        checked, end = at + 8 + length, at + 12 + length
        if kind == b"IEND" and end <= len(data):
            if not kept:
                return data
            break
        if checked > len(data) or not kind.isalpha():
            break
        found = found or kind == b"IDAT"
        if kind in _ANIMATION:
            kept.append(data[start:at])
            start = end
        elif end > len(data):  # only the checksum is cut; zlib has its own
            checksum = struct.pack(">I", zlib.crc32(data[at + 4 : checked]))
            at = checked
            break
        at = end
    if not found:
        raise EndsEarlyError
    return b"".join(kept) + data[start:at] + checksum + _END
