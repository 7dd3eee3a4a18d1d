"""What featd reads of a TIFF itself: the first directory (TIFF 6.0, section 2; BigTIFF has 8-byte offsets)."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.images.flaws import EndsEarlyError, OutOfOrderError

_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 256, 257, 273, 279, 324, 325
_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANES = 258, 259, 262, 274, 277, 284
_EXTRA, _FORMAT = 338, 339
_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES}
    | {_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANES, _EXTRA, _FORMAT}
)
_UNASSOCIATED, _ASSOCIATED = 2, 1
_PALETTE = 3
_FLOAT = 3
_JPEG, _END_OF_JPEG = 7, b"\xff\xd9"
_NAMES = (
    {
        6: "JPEG of before 1995",
        32766: "NeXT",
        32809: "ThunderScan",
        32909: "PixarLog",
        34661: "JBIG",
        34887: "LERC",
        34892: "lossy JPEG of DNG",
        34925: "LZMA",
        34933: "PNG",
        34934: "JPEG XR",
        50000: "Zstandard",
        50001: "WebP",
    }
    | dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000")
    | dict.fromkeys((50002, 52546), "JPEG XL")
)
_HARMLESS = re.compile(r"TIFFAdvanceDirectory: |Too large (strip|tile) byte count")


@dataclass(frozen=True, slots=True)
class Directory:
    """The whole numbers of a directory, by tag. `places`: the offset and type of each; `reach`: how far any value of
    the directory reaches."""

    values: dict[int, tuple[int, ...]]
    places: dict[int, tuple[int, str]]
    reach: int

    def first(self, tag: int, default: int) -> int:
        return self.values.get(tag, (default,))[0]

    def __str__(self) -> str:
        """What kind of TIFF this is, in the numbers of TIFF 6.0; names for the compressions that are not read."""
        samples, bits, compression = (self.first(tag, 1) for tag in (_SAMPLES, _BITS, _COMPRESSION))
        name = f" ({_NAMES[compression]})" if compression in _NAMES else ""
        return (
            f"a TIFF of {samples} sample{'s' * (samples > 1)} of {bits} bits{', floating' * self.is_float}, "
            f"compression {compression}{name}, photometric interpretation {self.first(_PHOTOMETRIC, 0)}"
        )

    @property
    def orientation(self) -> int:
        return self.first(_ORIENTATION, 1)

    @property
    def has_unassociated_alpha(self) -> bool:
        return _UNASSOCIATED in self.values.get(_EXTRA, ())

    @property
    def is_gray_alpha(self) -> bool:
        return self._is_gray and self.first(_SAMPLES, 1) == 2

    @property
    def no_alpha(self) -> str:
        """What this TIFF is where no decoder here reads its alpha, else ""."""
        samples = self.first(_SAMPLES, 1)
        if self._is_gray and samples > 2:
            return f"a TIFF of {samples} samples of grey, not of colours and alpha"
        if self.is_planar and self.first(_BITS, 1) == 16:  # OpenCV mixes its channels up
            return "a TIFF of 16 bits in planes, with alpha"
        return ""

    @property
    def _is_gray(self) -> bool:
        return self.first(_PHOTOMETRIC, 0) in (0, 1)

    @property
    def is_tiled(self) -> bool:
        return _TILES in self.values

    @property
    def is_float(self) -> bool:
        return self.first(_FORMAT, 1) == _FLOAT

    @property
    def is_planar(self) -> bool:
        return self.first(_PLANES, 1) == 2 and self.first(_SAMPLES, 1) > 1

    @property
    def is_shallow(self) -> bool:
        """2 or 4 bits a sample. OpenCV reads them only in a palette of 4 bits."""
        bits = self.first(_BITS, 1)
        return bits == 2 or (bits == 4 and self.first(_PHOTOMETRIC, 0) != _PALETTE)


def directory(data: bytes) -> Directory:
    """The first directory. EndsEarlyError, struct.error, OutOfOrderError."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    word, inline, entry = ("Q", 8, 20) if big else ("I", 4, 12)
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    if at + count * entry > len(data):
        raise EndsEarlyError
    values: dict[int, tuple[int, ...]] = {}
    places: dict[int, tuple[int, str]] = {}
    reach = at + count * entry
    for number in range(count):
        start = at + number * entry
        tag, kind, length = struct.unpack_from(order + "HH" + word, data, start)
        value_at = start + entry - inline
        size = length * _BYTES.get(kind, 0)
        if size > inline:
            (value_at,) = struct.unpack_from(order + word, data, value_at)
            reach = max(reach, value_at + size)
        # Only the tags that are needed: thousands of tags may claim the same bytes, and each would be unpacked.
        # One that reaches out of the data is left out, as by libtiff; `reach` tells.
        if kind not in _TYPES or tag not in _TAGS or tag in values or not 0 < size <= len(data) - value_at:
            continue
        values[tag] = struct.unpack_from(f"{order}{length}{_TYPES[kind]}", data, value_at)
        places[tag] = value_at, order + _TYPES[kind]
    return Directory(values, places, reach)


def size(data: bytes) -> tuple[int, int]:
    """(width, height)."""
    found = directory(data)
    if _WIDTH not in found.values or _HEIGHT not in found.values:
        if found.reach > len(data):
            raise EndsEarlyError
        raise OutOfOrderError("no width or height")
    return found.values[_WIDTH][0], found.values[_HEIGHT][0]


def is_complete(data: bytes) -> bool:
    """Whether the data reaches the end of the first picture."""
    found = directory(data)
    starts = found.values.get(_STRIPS) or found.values.get(_TILES) or ()
    sizes = found.values.get(_STRIP_BYTES) or found.values.get(_TILE_BYTES) or (0,) * len(starts)
    ends = [start + size for start, size in zip(starts, sizes, strict=False)]
    return max([found.reach, *ends]) <= len(data)


def is_harmless(_: bytes, complaint: str) -> bool:
    """Whether the first picture is all there although libtiff complains: it has not found the next one, or a strip has
    far more bytes than it can need."""
    return _HARMLESS.search(complaint) is not None


def plain(data: bytes, found: Directory) -> bytes:
    """The TIFF without two tags that libtiff acts on: it turns the picture by its orientation, which is
    `preprocess.orientation`'s to decide, and multiplies the colours by an unassociated alpha, which is to be dropped.
    """
    changes = []
    if found.orientation != 1:
        changes.append((*found.places[_ORIENTATION], 1))
    for number, value in enumerate(found.values.get(_EXTRA, ())):
        if value == _UNASSOCIATED:
            changes.append((*_element(found, _EXTRA, number), _ASSOCIATED))
    return _changed(data, changes)


def with_alpha(data: bytes, found: Directory) -> bytes:
    """The TIFF with every extra sample as an unassociated alpha, as which Pillow gives it."""
    extra = range(len(found.values.get(_EXTRA, ())))
    return _changed(data, [(*_element(found, _EXTRA, number), _UNASSOCIATED) for number in extra])


def with_jpeg_ends(data: bytes, found: Directory) -> bytes:
    """The TIFF with an end marker behind each strip or tile of JPEG, in place of zeros: without one, libjpeg complains
    of a strip that is all there. With one, it complains where rows are missing."""
    if found.first(_COMPRESSION, 1) != _JPEG:
        return data
    starts, counts = (_STRIPS, _STRIP_BYTES) if _STRIPS in found.values else (_TILES, _TILE_BYTES)
    ended = bytearray(data)
    changes = []
    for number, (start, count) in enumerate(
        zip(found.values.get(starts, ()), found.values.get(counts, ()), strict=False)
    ):
        strip = data[start : start + count].rstrip(b"\0")
        if not strip.endswith(_END_OF_JPEG):
            strip += b"\0" + _END_OF_JPEG if strip.endswith(b"\xff") else _END_OF_JPEG
            changes.append((*_element(found, starts, number), len(ended)))
            changes.append((*_element(found, counts, number), len(strip)))
            ended += strip
    return _changed(bytes(ended), changes)


def _element(found: Directory, tag: int, number: int) -> tuple[int, str]:
    at, form = found.places[tag]
    return at + number * struct.calcsize(form), form


def _changed(data: bytes, changes: Sequence[tuple[int, str, int]]) -> bytes:
    if not changes:
        return data
    changed = bytearray(data)
    for at, form, value in changes:
        struct.pack_into(form, changed, at, value)
    return bytes(changed)


def grey_levels(floats: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Floating pixels as uint8. Where none is above 1, they are shares of 255, as in scikit-image; else they are grey
    levels, and what is outside 0 to 255 is clipped, infinities too. What is no number is 0. `floats` is changed."""
    if np.max(floats, initial=0.0, where=np.isfinite(floats)) <= 1.0:
        floats *= 255.0
    np.nan_to_num(floats, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(floats, 0.0, 255.0, out=floats)
    return np.asarray(np.rint(floats, out=floats), np.uint8)
