"""The format and size of a picture, read from its header without decoding.

This is an allow-list by content: the file's name does not count, and no format that runs other programs (SVG, EPS,
PDF) is on it. Pillow's `Image.open` takes 0.1 ms (8 % of decoding a small photo) and refuses TIFFs that the decoder
reads (16-bit RGB), so the headers are read here; tests compare both. A header may be as odd as decoders allow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from featd.errors import ImageError
from featd.images import bmp, foreign, gif, jpeg, png, pnm, tiff
from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError
from featd.states import Kind


class Format(StrEnum):
    """The formats featd decodes."""

    JPEG = "JPEG"  # and MPO, whose first picture is an ordinary JPEG
    PNG = "PNG"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"
    WEBP = "WebP"
    PNM = "PNM"  # PBM, PGM and PPM
    AVIF = "AVIF"
    HEIC = "HEIC"


@dataclass(frozen=True, slots=True)
class Header:
    """Format and size of the (first) picture; width and height in pixels, as stored."""

    format: Format
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.format} of {self.width}x{self.height}"


def probe(data: bytes) -> Header:
    """Format and size of a picture. ImageError: decode.corrupt (empty, or a broken header), decode.truncated
    (ends inside the header), decode.unsupported (not one of `Format`)."""
    if not data:
        raise ImageError(Kind.DECODE_CORRUPT, "the file is empty")
    form = _sniff(data)
    if form is None:
        known = ", ".join(Format)
        raise ImageError(
            Kind.DECODE_UNSUPPORTED,
            f"not a {known} file by its content, which begins with {data[:12].hex(' ')}",
        )
    try:
        read_size, _ = _FORMATS[form]
        width, height = read_size(data)
    except (EndsEarlyError, struct.error, IndexError):
        raise ImageError(Kind.DECODE_TRUNCATED, f"the {form} ends inside its header") from None
    except UnsupportedError as error:
        raise ImageError(Kind.DECODE_UNSUPPORTED, f"the {form} cannot be read: {error}") from None
    except OutOfOrderError as error:
        raise ImageError(Kind.DECODE_CORRUPT, f"the {form}'s header is broken: {error}") from None
    if width <= 0 or height <= 0:
        raise ImageError(
            Kind.DECODE_CORRUPT, f"the {form}'s header is broken: it gives {width}x{height} pixels"
        )
    return Header(form, width, height)


def is_complete(data: bytes, form: Format) -> bool:
    """Whether the data reaches the end of the first picture. Used where decoding failed, to distinguish a file that was
    cut short (decode.truncated) from a damaged one (decode.corrupt)."""
    try:
        _, reaches_end = _FORMATS[form]
        return reaches_end(data)
    except (EndsEarlyError, struct.error, IndexError):
        return False
    except (OutOfOrderError, UnsupportedError):
        return True


def _sniff(data: bytes) -> Format | None:
    if data.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")):
        return Format.TIFF
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Format.WEBP
    # "BM" alone also begins English text: the size of the second header must be one that exists.
    if data.startswith(b"BM") and (len(data) < 18 or _u32(data, 14) in (12, 16, 40, 52, 56, 64, 108, 124)):
        return Format.BMP
    if pnm.is_one(data):
        return Format.PNM
    if foreign.is_avif(data):
        return Format.AVIF
    return Format.HEIC if foreign.is_heic(data) else None


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return value


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        if len(data) < 30:
            raise EndsEarlyError
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = _u32(data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(kind) < 4:
        raise EndsEarlyError
    raise OutOfOrderError("no VP8 chunk")


_FORMATS: Final[dict[Format, tuple[Callable[[bytes], tuple[int, int]], Callable[[bytes], bool]]]] = {
    Format.JPEG: (jpeg.size, jpeg.has_end),
    Format.PNG: (png.size, png.is_complete),
    Format.GIF: (gif.size, gif.is_complete),
    Format.BMP: (bmp.size, bmp.is_complete),
    Format.TIFF: (tiff.size, tiff.is_complete),
    Format.WEBP: (_webp_size, lambda data: len(data) >= _u32(data, 4) + 8),
    Format.PNM: (pnm.size, pnm.is_complete),
    Format.AVIF: (foreign.size, foreign.is_complete),
    Format.HEIC: (foreign.size, foreign.is_complete),
}
"""What gives (width, height), and what tells whether the data reaches the end of the first picture."""
