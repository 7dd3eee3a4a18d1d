"""What featd reads of a JPEG itself: the frame's size, the end, and which complaints of libjpeg are harmless.

Markers are found as libjpeg finds them, which skips bytes between segments (ITU T.81, B.1).
"""

from __future__ import annotations

import re
import struct

from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError

END = b"\xff\xd9"
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_APPLICATION = frozenset(range(0xE0, 0xF0))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READ_BY_LIBJPEG = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE = 0xC2
_ARITHMETIC = 0xC9  # from this frame marker on
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
    return ""


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


def is_harmless(data: bytes, complaint: str) -> bool:
    """Whether every row is there although libjpeg complains: it has skipped bytes between segments, or padding or text
    behind a scan. Picture data that is left over there means that the decoder has failed before."""
    if complaint.startswith(
        "Invalid SOS param"
    ):  # a baseline scan that gives no range: libjpeg ignores the range
        return True
    match = _LEFT_OVER.search(complaint)
    if not match:
        return False
    count, before = int(match[1]), int(match[2], 16)
    first_scan = -1
    for marker, at, skipped in _segments(data):
        if (marker, skipped) == (before, count):
            return True
        if marker == _SCAN:
            first_scan = at
            break
    if first_scan < 0 or before in _ALONE:
        return False
    at = first_scan
    while (at := data.find(bytes((0xFF, before)), at)) >= 0:
        if _is_filling(data, at, count):
            return True
        at += 2
    return False


def _is_filling(data: bytes, at: int, count: int) -> bool:
    """Whether the `count` bytes before `at` are one value over and over, or text, of which the decoder has read no
    more than it reads ahead: zeros that it took for picture data fill a lost part."""
    while data[at - 1] == 0xFF:
        at -= 1
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
        if marker in (_START, _END, _SCAN):
            raise OutOfOrderError("a scan or an end before the frame")
        if marker not in _ALONE:
            at += _length(data, at)


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans give every bit of every coefficient. Not known for arithmetic coding, whose decoder takes
    missing data for zeros without a word."""
    at = _frame(data)
    frame = data[at]
    if frame >= _ARITHMETIC:
        return False
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
            if frame != _PROGRESSIVE:
                first, last, bits = 0, 63, 0
            for number in range(count):
                component = missing.get(data[at + 3 + 2 * number], [])
                component[first : last + 1] = [bits & 15] * len(component[first : last + 1])
        at += _length(data, at)
