"""What featd reads of a BMP itself: its size, and pixels whose channels lie where OpenCV does not look."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from featd.images.flaws import EndsEarlyError, UnsupportedError

_OLD_HEADER, _FIRST_HEADER, _ALPHA_HEADER = 12, 40, 56
_SHORT_OS2_HEADER, _OS2_HEADER = 16, 64
_PLAIN, _FIELDS, _FIELDS_AND_ALPHA = 0, 3, 6
_READ_BITS = {0: (1, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), _FIELDS: (16, 32), _FIELDS_AND_ALPHA: (16, 32)}
_CODINGS = {4: "an embedded JPEG", 5: "an embedded PNG"}
_OS2_CODINGS = {3: "Huffman coding", 4: "run lengths of 24 bits"}
_USUAL_32 = (0xFF0000, 0xFF00, 0xFF)
_BEHIND_MASKS = 66  # where pixels begin at the earliest, with the first header
_NONE = (0, 0, 0)  # means the usual ones, to OpenCV, Pillow and the programs that write them
_USUAL_16 = ((0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F))


def size(data: bytes) -> tuple[int, int]:
    """(width, height). UnsupportedError where OpenCV does not read this kind."""
    if why := _unsupported(data):
        raise UnsupportedError(f"{why}, which OpenCV does not read")
    if _u32(data, 14) == _OLD_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # a negative height means rows from the top


def is_complete(data: bytes) -> bool:
    """Whether the data reaches the end of the picture."""
    old = _u32(data, 14) == _OLD_HEADER
    if not old and _u32(data, 30) not in (_PLAIN, _FIELDS, _FIELDS_AND_ALPHA):
        return _u32(data, 2) <= len(data)  # run-length coded: only the header gives the size
    width, height = size(data)
    bits: int = struct.unpack_from("<H", data, 24 if old else 28)[0]
    return len(data) >= _u32(data, 10) + (width * bits + 31) // 32 * 4 * height


def _unsupported(data: bytes) -> str:
    header = _u32(data, 14)
    if header == _SHORT_OS2_HEADER:
        return "it is of OS/2, with a header of 16 bytes"
    bits: int = struct.unpack_from("<H", data, 24 if header == _OLD_HEADER else 28)[0]
    coding = _PLAIN if header == _OLD_HEADER else _u32(data, 30)
    if name := (_OS2_CODINGS if header == _OS2_HEADER else _CODINGS).get(coding):
        return f"it has {name}"
    if bits not in _READ_BITS.get(coding, ()):
        return f"it has {bits} bits a pixel and the compression {coding}"
    return ""


def unusual_fields(data: bytes) -> tuple[int, int, int] | None:
    """The masks of red, green and blue where OpenCV would not use them: with 32 bits it takes other masks for the
    usual ones in the first header and cuts channels of more than 8 bits; with 16 bits it refuses them, and with alpha
    behind the first header."""
    header = _u32(data, 14)
    if header in (_OLD_HEADER, _OS2_HEADER) or _u32(data, 30) not in (_FIELDS, _FIELDS_AND_ALPHA):
        return None
    bits: int = struct.unpack_from("<H", data, 28)[0]
    masks = _masks(data)
    usual = masks in (_USUAL_32, _NONE) if bits == 32 else header == _FIRST_HEADER and masks in _USUAL_16
    if (usual and _u32(data, 30) == _FIELDS) or bits not in (16, 32):
        return None
    return masks if masks != _NONE else _USUAL_32 if bits == 32 else _USUAL_16[0]


def _masks(data: bytes) -> tuple[int, int, int]:
    """The masks of red, green and blue; none where the pixels follow the first header at once."""
    if _u32(data, 14) == _FIRST_HEADER and _u32(data, 10) < _BEHIND_MASKS:
        return _NONE
    masks: tuple[int, int, int] = struct.unpack_from("<III", data, 54)
    return masks


def decode_fields(data: bytes, masks: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The picture of a BMP with bit fields: uint8 (H, W, 3), BGR. The levels of a narrow channel are spread as by
    Pillow, of a wide one the upper 8 bits count."""
    return np.dstack([_channel(data, mask) for mask in reversed(masks)])


def decode_alpha(data: bytes) -> npt.NDArray[np.uint8] | None:
    """uint8 (H, W), the alpha of a BMP with bit fields; None where it has none."""
    header = _u32(data, 14)
    if header in (_OLD_HEADER, _OS2_HEADER) or _u32(data, 30) not in (_FIELDS, _FIELDS_AND_ALPHA):
        return None
    bits: int = struct.unpack_from("<H", data, 28)[0]
    if bits == 32 and _masks(data) == _NONE:  # the usual masks leave these bits
        return _channel(data, 0xFF000000)
    if header < _ALPHA_HEADER and _u32(data, 30) != _FIELDS_AND_ALPHA:
        return None
    mask = _u32(data, 66)
    return _channel(data, mask) if mask else None


def _channel(data: bytes, mask: int) -> npt.NDArray[np.uint8]:
    """uint8 (H, W), the levels under a mask; zeros where it is 0."""
    width, height = size(data)
    bits: int = struct.unpack_from("<H", data, 28)[0]
    mask &= (1 << bits) - 1
    row = (width * bits + 31) // 32 * 4
    start = _u32(data, 10)
    if start + row * height > len(data):
        raise EndsEarlyError
    rows = np.frombuffer(data, f"<u{bits // 8}", row * height * 8 // bits, start)
    rows = rows.reshape(height, -1)[:, :width]
    plane = np.zeros((height, width), np.uint8)
    if mask:
        shift = (mask & -mask).bit_length() - 1
        depth = (mask >> shift).bit_length()
        levels = (rows & mask) >> shift
        plane[...] = levels >> depth - 8 if depth > 8 else levels * np.uint32(255) // np.uint32(mask >> shift)
    rows_from_top = struct.unpack_from("<i", data, 22)[0] < 0
    return plane if rows_from_top else np.ascontiguousarray(plane[::-1])


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return value
