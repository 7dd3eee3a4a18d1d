"""What featd reads of a JPEG itself: the frame's size, the end, and what libjpeg complains of without need.

Markers are found as libjpeg finds them, which skips bytes between segments (ITU T.81, B.1).
"""

from __future__ import annotations

import re
import struct

from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError

END = b"\xff\xd9"
_START, _END, _SCAN, _RESTART = 0xD8, 0xD9, 0xDA, 0xD0
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_APPLICATION = frozenset(range(0xE0, 0xF0))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READ_BY_LIBJPEG = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_ARITHMETIC = 0xC9  # from this frame marker on
_NOT_READ = {0xDE: "a hierarchical JPEG", 0xDF: "a hierarchical JPEG", 0xF7: "JPEG-LS"}
_LOSSLESS = 0xC3
_JFIF, _ADOBE = 0xE0, 0xEE
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
_TEXT = bytes(range(32, 127)) + b"\0\t\r\n"
_CONTINUATION = bytes(range(0x80, 0xC0))
_READ_AHEAD = 8
"""libjpeg has up to so many bytes in its bit buffer, which it does not count as left over."""


def size(data: bytes) -> tuple[int, int]:
    """(width, height) of the first frame."""
    at = _frame(data)
    height, width = struct.unpack_from(">HH", data, at + 4)
    if not height:
        raise UnsupportedError("its height is written behind the picture (DNL), which no decoder here reads")
    return width, height


def unsupported(data: bytes) -> str:
    """Why libjpeg does not read this JPEG at all, or ""."""
    at = _frame(data)
    if data[at] not in _READ_BY_LIBJPEG:
        return "a lossless or hierarchical JPEG"
    if data[at + 3] != 8:
        return f"a JPEG of {data[at + 3]} bits"
    if data[at + 8] not in (1, 3, 4):
        return f"a JPEG of {data[at + 8]} components"
    sampling = data[at + 10 : at + 9 + 3 * data[at + 8] : 3]
    for factors in [one >> 4 for one in sampling], [one & 15 for one in sampling]:
        if 0 not in factors and any(max(factors) % one for one in factors):
            return "a JPEG with fractional sampling"
    return ""


def is_lossless(data: bytes) -> bool:
    """Whether libjpeg gives the picture only in its own colours, and OpenCV refuses to ask for others."""
    return data[_frame(data)] == _LOSSLESS


def exif_start(data: bytes) -> int:
    """Where EXIF begins, or negative. It is in one of the first segments."""
    at = 2
    while data[at] == 0xFF and data[at + 1] in _APPLICATION:
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return at + 10
        at += 2 + _length(data, at + 2)
    return -1


def has_end(data: bytes) -> bool:
    """Whether there is an end marker behind the header of the first scan: that of a thumbnail does not count."""
    for marker, at, _ in _segments(data):
        if marker == _SCAN:
            return data.rfind(END, at) >= 0
    return False


def with_end(data: bytes) -> bytes:
    """The JPEG with an end marker. `imdecode` refuses a whole picture without one, which `imread` reads; with one,
    libjpeg complains where rows are missing. EndsEarlyError where scans are missing, of which libjpeg says nothing."""
    if data.endswith(END) or has_end(data):
        return data
    data = data.rstrip(b"\xff") + END
    if not _has_every_scan(data):
        raise EndsEarlyError
    return data


def is_doubtful(data: bytes) -> bool:
    """Whether a JPEG without an end marker may be incomplete although libjpeg says nothing, so that Pillow is asked,
    which goes on only while there is data: an arithmetic decoder takes missing data for zeros, and zeros in place of
    the last rows may be just as many as they need."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    return not has_end(data) and (data[_frame(data)] >= _ARITHMETIC or zeros > 2 * _READ_AHEAD)


def tidied(data: bytes) -> bytes:
    """The JPEG without what libjpeg only warns of: bytes between segments before the scans, a range in a baseline scan,
    an unknown revision of JFIF or transform of Adobe, restart markers whose numbers are out of order.

    libjpeg tells of the first thing alone, so that each of these hides whatever is damaged behind it.
    """
    frame = _frame(data)
    sequential, transform = data[frame] in _SEQUENTIAL, 2 if data[frame + 8] == 4 else 1
    out = bytearray(data[:2])
    at, scans, in_scan, restarts = 2, 0, False, 0
    while True:
        marker, behind, _ = _next_marker(data, at)
        if scans:  # behind the first one, bytes between segments may be picture data
            out += data[at : behind - 2].rstrip(b"\xff")
        if marker == _END:
            return bytes(out) + END
        at = behind
        if marker in _ALONE:
            if in_scan:
                out += bytes((0xFF, _RESTART + restarts % 8))
                restarts += 1
            continue
        at += _length(data, behind)
        body = bytearray(data[behind:at])
        if marker == _JFIF and body[2:7] == b"JFIF\0":
            body[7:8] = b"\1"
        if marker == _ADOBE and body[2:7] == b"Adobe" and body[13:14] not in (b"\0", bytes((transform,))):
            body[13:14] = bytes((transform,))
        if marker == _SCAN and sequential:
            body[-3:] = 0, 63, 0
        out += bytes((0xFF, marker)) + body
        in_scan, restarts = marker == _SCAN, 0
        scans += in_scan


def without_filling(data: bytes, complaint: str, rest: bool) -> bytes | None:
    """The JPEG without the padding or text behind a scan of which libjpeg complains. None where it complains of
    something else, or picture data is left over there, which means that the decoder has failed before. `rest`: most of
    the filling was removed before, and what had been read ahead is left."""
    match = _LEFT_OVER.search(complaint)
    if not match:
        return None
    count, before = int(match[1]), int(match[2], 16)
    if not count or before in _ALONE:
        return None
    at = _segments(data)[-1][1]
    while (at := data.find(bytes((0xFF, before)), at)) >= 0:
        if _is_filling(data, at, count) or (rest and count <= 2 * _READ_AHEAD):
            return data[: at - count] + data[at:]
        at += 2
    return None


def _is_filling(data: bytes, at: int, count: int) -> bool:
    """Whether the `count` bytes before `at` are one value over and over, or text, of which the decoder has read no
    more than it reads ahead: zeros that it took for picture data fill a lost part."""
    window = data[max(at - count - 2 * _READ_AHEAD - 1, 0) : at]
    for filling in (window[-1:], _TEXT):
        run = len(window) - len(window.rstrip(filling))
        long_enough = (
            filling is not _TEXT or run >= _READ_AHEAD
        )  # a few bytes of picture data may look like text
        if long_enough and count <= run <= count + 2 * _READ_AHEAD:
            return True
    return _is_utf8(window[-count:])


def _is_utf8(left: bytes) -> bool:
    """Whether the bytes are text in any language; they may begin inside a letter."""
    try:
        text = left.lstrip(_CONTINUATION).decode()
    except UnicodeDecodeError:
        return False
    return len(left) >= _READ_AHEAD and all(letter.isprintable() or letter in "\r\n\t" for letter in text)


def _segments(data: bytes, at: int = 2) -> list[tuple[int, int, int]]:
    """(marker, offset of its length, bytes skipped before it), up to the first scan's or the end marker."""
    found = []
    while True:
        marker, at, skipped = _next_marker(data, at)
        found.append((marker, at, skipped))
        if marker in (_SCAN, _END):
            return found
        if marker == _START:
            raise OutOfOrderError("a second start")
        if marker not in _ALONE:
            at += _length(data, at)


def _next_marker(data: bytes, at: int) -> tuple[int, int, int]:
    """(marker, offset behind it, bytes skipped before it). Fill bytes 0xFF do not count; 0xFF 0 is no marker."""
    skipped = 0
    while True:
        start = data.find(b"\xff", at)
        if start < 0:
            raise EndsEarlyError
        skipped += start - at
        at = start
        while data[at] == 0xFF:
            at += 1
        if data[at]:
            return data[at], at + 1, skipped
        at, skipped = at + 1, skipped + 2


def _length(data: bytes, at: int) -> int:
    length: int = struct.unpack_from(">H", data, at)[0]
    if length < 2:
        raise OutOfOrderError(f"a segment of {length} bytes")
    return length


def _frame(data: bytes) -> int:
    """The offset of the first frame's marker byte."""
    at = 2
    while True:
        marker, at, _ = _next_marker(data, at)
        if marker in _FRAMES:
            return at - 1
        if marker in _NOT_READ:
            raise UnsupportedError(f"it is {_NOT_READ[marker]}, which no decoder here reads")
        if marker in (_START, _END, _SCAN):
            raise OutOfOrderError("a scan or an end before the frame")
        if marker not in _ALONE:
            at += _length(data, at)


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans give every bit of every coefficient."""
    at = _frame(data)
    frame = data[at]
    # The bits that are still missing, by component and coefficient; None: no scan had it yet.
    missing: dict[int, list[int | None]] = {
        data[at + 9 + 3 * number]: [None] * 64 for number in range(data[at + 8])
    }
    at += 1 + _length(data, at + 1)
    while True:
        marker, at, _ = _next_marker(data, at)
        if marker == _END:
            return not any(left is None or left for one in missing.values() for left in one)
        if marker in _ALONE:
            continue
        if marker == _SCAN:
            count = data[at + 2]
            first, last, bits = struct.unpack_from("3B", data, at + 3 + 2 * count)
            if frame not in _PROGRESSIVE:
                first, last, bits = 0, 63, 0
            for number in range(count):
                component = missing.get(data[at + 3 + 2 * number], [])
                component[first : last + 1] = [bits & 15] * len(component[first : last + 1])
        at += _length(data, at)
