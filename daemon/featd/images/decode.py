"""From a file's bytes to pixels, by OpenCV, as in Caffe. A partial picture is an error, never a result.

What `cv2.imread` and Pillow both read alike is read with these pixels. Where `imdecode` does otherwise, the bytes are
changed first, or another reader is asked: each case is a function of the format's module, with its reason.

Tests with OpenCV 5.0.0 and 4.11.0 (JPEG, PNG, GIF, BMP, TIFF and WebP, cut at 10 to 99 %, with holes and flipped bits)
showed that `imdecode` returns None for every file that is cut short, but a partly grey JPEG or a partly black TIFF
where the data stops and an end marker follows (a hole, a lost block, an appended tail). libjpeg and libtiff then only
print a message to stderr, so stderr is read here; libjpeg prints no more than the first one. Pillow accepts such files
without a message.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from featd.errors import ImageError
from featd.images import bmp, exif, foreign, gif, jpeg, png, pnm, tiff
from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError
from featd.images.header import Format, Header, is_complete, probe
from featd.images.native_stderr import native_stderr
from featd.states import Kind

DECODER = "opencv/1"
"""Name and revision of the decoder for the fingerprint. Raise the revision when the same file would give other
pixels on purpose; a library upgrade does not count."""

Pixels = npt.NDArray[np.uint8]
_Decoded = npt.NDArray[Any] | None

_PARTIAL = re.compile(
    r"Corrupt JPEG data.*|Premature end.*|Inconsistent progression.*|(?<=TIFF_Error ).*|Invalid SOS param.*"
)
_PARTIAL_STRIP = re.compile(r"\w+Decode: .*|Using code not yet in table")  # of the libtiff in Pillow
_ENDED = re.compile(r"(?i)premature end|not enough (image )?data|unexpected end|is incomplete|truncated")
_NO_MEMORY = re.compile(r"(?i)insufficient memory|failed to allocate|out of memory|bad_alloc")
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|can ?not handle|not supported|not (been )?(configured|implemented)|unimplemented"
    r"|sample_?format|bitsperpixel|unhandled critical chunk"
)
_NO_CODEC = re.compile(r"decoding is not implemented|support is not configured")
_EXPRESSION = re.compile(r"&&|\|\||[=!<>]=|::|->|\w\([^)]+\)|^(where|must be .*|'.*' is .*)$")
"""A line that only the source of OpenCV explains."""
_LOG = re.compile(
    r"^(\[ *\w+:\d+@[\d.]+\] global \S+ \S+ )?(im\w+_\('.*?'\): )?(can't read (header|data): )?"
    r"(OpenCV\([\d.]+\) \S+ error: \([^)]*\) )?(OpenCV TIFF(\(line \d+\))?: |TIFF_Error |> *)?"
    r"|in function '.*'$"
)
"""What stands around the reason in a line of OpenCV's log."""
_MOST_REASON = 300
_MOST_COMPLAINTS = 16


def decode(
    data: bytes,
    *,
    max_pixels: int,
    gray: bool = False,
    alpha: bool = False,
    orientation: str = "apply",
    shortest: int | None = None,
    stderr: int | None = None,
) -> Pixels:
    """The (first) picture of `data`: uint8 (H, W, 3) in BGR order, or (H, W) if `gray`. With `alpha`, that is one more
    channel, (H, W, 4) or (H, W, 2), of 255 where the file has none; without it, alpha is dropped.

    16 bits become 8, palettes, CMYK and single bits become colour or grey. `orientation` "apply" rotates the picture as
    its EXIF says, "ignore" does not. With `shortest`, a JPEG is decoded at an eighth, a quarter or half of its size:
    the smallest of them whose shorter side has at least so many pixels. `stderr` is for `native_stderr`.

    ImageError: decode.unsupported, decode.too_large (judged from the header, before anything is decoded),
    decode.truncated, decode.corrupt.
    """
    header = probe(data)
    if header.width * header.height > max_pixels:
        raise ImageError(
            Kind.DECODE_TOO_LARGE,
            f"{header.width}x{header.height} pixels exceed preprocess.max_pixels = {max_pixels}",
        )
    reduced = 1 if shortest is None else _reduction(data, header, shortest)
    try:
        pixels = _decode(data, header, gray, orientation == "apply", reduced, stderr)
        if alpha:
            plane = _decode_alpha(data, header, orientation == "apply", stderr)
            if plane is None:
                plane = np.full(pixels.shape[:2], 255, np.uint8)
            if plane.shape != pixels.shape[:2]:
                raise OutOfOrderError("its alpha is of another size")
            pixels = np.dstack([pixels, plane])
    except (EndsEarlyError, struct.error, IndexError):
        raise _ends_early(data, header) from None
    except UnsupportedError as error:
        raise ImageError(
            Kind.DECODE_UNSUPPORTED, f"the {header} is {error}, which featd does not read"
        ) from None
    except OutOfOrderError as error:
        raise ImageError(Kind.DECODE_CORRUPT, f"the {header} cannot be decoded: {error}") from None
    # A header with another size than the decoded picture has bypassed the limit above.
    if sorted(pixels.shape[:2]) != sorted((-(-header.width // reduced), -(-header.height // reduced))):
        raise ImageError(
            Kind.DECODE_CORRUPT,
            f"the {header.format}'s header says {header.width}x{header.height}, "
            f"but the picture has {pixels.shape[1]}x{pixels.shape[0]} pixels",
        )
    return pixels


_REDUCED = {  # divisor -> flags for colour and for grey
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    1: (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE),
}


def _reduction(data: bytes, header: Header, shortest: int) -> int:
    """By what libjpeg is to divide both sides, rounding up."""
    if header.format is not Format.JPEG or jpeg.is_lossless(data):
        return 1
    shorter = min(header.width, header.height)
    return next((by for by in _REDUCED if -(-shorter // by) >= shortest), 1)


def _decode(
    data: bytes, header: Header, gray: bool, upright: bool, reduced: int, stderr: int | None
) -> Pixels:
    form = header.format
    if form is Format.AVIF:
        return _as_asked(_decode_avif(data, header, upright, stderr), gray)
    if form is Format.HEIC:
        return _as_asked(_by_pillow(data, upright, stderr), gray)
    if form is Format.BMP and (masks := bmp.unusual_fields(data)):
        return _as_asked(bmp.decode_fields(data, masks), gray)
    if form is Format.TIFF:
        return _decode_tiff(data, header, gray, upright, stderr)
    mended = _MENDED[form](data) if form in _MENDED else data
    flags = _REDUCED[reduced][gray]
    if form is Format.JPEG and jpeg.is_lossless(data):
        flags = cv2.IMREAD_ANYCOLOR
    if not upright:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    white = pnm.unscaled_white(data) if form is Format.PNM else 0
    if white:
        flags |= cv2.IMREAD_ANYDEPTH
    pixels, said = _imdecode(mended, flags, stderr)
    if pixels is None:
        raise _why_not(data, header, said)
    if form is Format.JPEG:
        _refuse_partial_jpeg(data, mended, pixels, said, lambda data: _imdecode(data, flags, stderr))
    elif said:
        _refuse_partial(mended, form, said)
    if white:
        pixels = pnm.grey_levels(pixels, white)
    pixels = _as_asked(pixels, gray)
    if upright and form in EXIF_STARTS:
        return exif.turn(pixels, exif.missed_orientation(data, EXIF_STARTS[form](data)))
    return pixels


def _decode_avif(data: bytes, header: Header, upright: bool, stderr: int | None) -> Pixels:
    """By OpenCV, which notices damage where Pillow gives a partial picture; it does not turn it as its header says."""
    pixels, said = _imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, stderr)
    if pixels is None and said:
        raise _why_not(data, header, said)
    if pixels is None:  # an OpenCV that was built without AVIF
        return _by_pillow(data, upright, stderr)
    return exif.turn(pixels, foreign.orientation(data)) if upright else pixels


def _decode_tiff(data: bytes, header: Header, gray: bool, upright: bool, stderr: int | None) -> Pixels:
    found = tiff.directory(data)
    plain = tiff.plain(data, found)
    if found.is_shallow:
        pixels = _as_asked(_by_pillow(plain, False, stderr), gray)
    else:
        if found.is_float and found.is_planar:  # OpenCV mixes its channels up
            raise UnsupportedError("a floating TIFF in planes")
        flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
        decoded = _tiff_pixels(plain, header, cv2.IMREAD_UNCHANGED if found.is_float else flags, stderr)
        pixels = _as_asked(tiff.grey_levels(decoded), gray) if found.is_float else decoded
    return exif.turn(pixels, found.orientation) if upright else pixels


def _tiff_pixels(plain: bytes, header: Header, flags: int, stderr: int | None) -> npt.NDArray[Any]:
    decoded, said = _imdecode(plain, flags, stderr)
    if decoded is None and tiff.directory(plain).is_tiled and is_complete(plain, Format.TIFF):
        decoded, said = _imread(plain, flags, stderr)
    if decoded is None:
        raise _why_not(plain, header, said)
    if said and "JPEG" in said and (ended := tiff.with_jpeg_ends(plain, tiff.directory(plain))) != plain:
        decoded, said = _imdecode(ended, flags, stderr)
        if decoded is None:
            raise _why_not(plain, header, said)
    if said:
        _refuse_partial(plain, Format.TIFF, said)
    return decoded


def _decode_alpha(data: bytes, header: Header, upright: bool, stderr: int | None) -> Pixels | None:
    """uint8 (H, W), the alpha of a picture whose colours were decoded without an error; None where it has none."""
    form = header.format
    if form is Format.HEIC:
        return foreign.alpha(data)
    if form is Format.BMP:
        return bmp.decode_alpha(data)
    if form in (Format.JPEG, Format.PNM):
        return None
    if form is Format.TIFF:
        found = tiff.directory(data)
        plane, turned = _tiff_alpha(data, header, found, stderr), found.orientation
    else:
        mended = _MENDED[form](data) if form in _MENDED else data
        decoded, _ = _imdecode(mended, cv2.IMREAD_UNCHANGED, stderr)
        plane = None if decoded is None else _alpha_of(decoded)
        if form is Format.PNG and plane is None and png.has_transparency(data):  # of one level of grey
            plane = foreign.alpha(mended)
        turned = foreign.orientation(data) if form is Format.AVIF else 1
        if form in EXIF_STARTS:
            turned = exif.orientation(data, EXIF_STARTS[form](data))
    return exif.turn(plane, turned) if upright and plane is not None else plane


def _tiff_alpha(data: bytes, header: Header, found: tiff.Directory, stderr: int | None) -> Pixels | None:
    if why := found.no_alpha:
        raise UnsupportedError(why)
    if found.is_shallow:
        return None
    if not found.is_gray_alpha:
        return _alpha_of(_tiff_pixels(tiff.plain(data, found), header, cv2.IMREAD_UNCHANGED, stderr))
    try:
        plane = foreign.alpha(tiff.with_alpha(data, found))  # OpenCV gives the grey alone
    except (OutOfOrderError, UnsupportedError):
        plane = None
    if plane is None:
        raise UnsupportedError("a grey TIFF with alpha of another kind than 8 bits")
    return plane


def _alpha_of(decoded: npt.NDArray[Any]) -> Pixels | None:
    if decoded.ndim == 2 or decoded.shape[2] != 4:
        return None
    if decoded.dtype.kind == "f":
        decoded = tiff.grey_levels(decoded)
    return np.asarray(decoded[..., 3] >> 8 * (decoded.itemsize - 1), np.uint8)


def _as_asked(pixels: Pixels, gray: bool) -> Pixels:
    """Pixels (H, W) or (H, W, 1 to 4) of another reader as (H, W, 3), or (H, W) if `gray`."""
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        single = pixels if pixels.ndim == 2 else pixels[..., 0]
        return single if gray else cv2.cvtColor(single, cv2.COLOR_GRAY2BGR)
    pixels = np.ascontiguousarray(pixels[..., :3])
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if gray else pixels


_MENDED: dict[Format, Callable[[bytes], bytes]] = {
    Format.JPEG: jpeg.with_end,
    Format.PNG: png.default_picture,
    Format.GIF: gif.first_picture,
    Format.PNM: pnm.with_last_blank,
}
EXIF_STARTS: dict[Format, Callable[[bytes], int]] = {
    Format.JPEG: jpeg.exif_start,
    Format.PNG: png.exif_start,
    Format.WEBP: exif.webp_start,
}
"""Where the EXIF of a file begins, or negative."""


def _by_pillow(data: bytes, upright: bool, stderr: int | None) -> Pixels:
    try:
        with native_stderr(stderr) as heard:
            pixels = foreign.decode(data, upright=upright)
    except OutOfOrderError as error:
        # Pillow says "decoder error -2", its libraries say why.
        told = "".join(heard).replace("tempfile.tif: ", "")
        if _NO_CODEC.search(told):
            raise UnsupportedError(str(tiff.directory(data))) from None
        raise OutOfOrderError("; ".join(dict.fromkeys(told.splitlines())) or str(error)) from None
    if complaint := _PARTIAL_STRIP.search("".join(heard)):
        raise OutOfOrderError(complaint[0])
    return pixels


def _imdecode(data: bytes, flags: int, stderr: int | None) -> tuple[_Decoded, str]:
    """(pixels or None, what OpenCV and its libraries said)."""
    return _heard(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flags), stderr)


def _imread(data: bytes, flags: int, stderr: int | None) -> tuple[_Decoded, str]:
    """As `_imdecode`, from a file in memory: from memory itself, OpenCV does not read some uncompressed tiles."""
    file = os.memfd_create("featd-image", os.MFD_CLOEXEC)
    with os.fdopen(file, "wb") as out:
        out.write(data)
        out.flush()
        return _heard(lambda: cv2.imread(f"/proc/self/fd/{file}", flags), stderr)


def _heard(read: Callable[[], _Decoded], stderr: int | None) -> tuple[_Decoded, str]:
    failure = ""
    pixels = None
    with native_stderr(stderr) as heard:
        try:
            pixels = read()
        except cv2.error as error:
            failure = str(error)
        except MemoryError as error:
            failure = f"out of memory {error}"
    return pixels, "".join(heard) + failure


def _refuse_partial(data: bytes, form: Format, said: str, *, cut: bool = False) -> None:
    for match in _PARTIAL.finditer(said):
        complaint = match[0].strip()
        if form is Format.TIFF and tiff.is_harmless(data, complaint):
            continue
        if form is Format.TIFF and _NO_CODEC.search(complaint):
            raise UnsupportedError(str(tiff.directory(data)))
        cut = cut or _ENDED.search(complaint) is not None or not is_complete(data, form)
        kind = Kind.DECODE_TRUNCATED if cut else Kind.DECODE_CORRUPT
        raise ImageError(kind, f"only part of the {form} could be decoded: {complaint}")


def _refuse_partial_jpeg(
    data: bytes, mended: bytes, pixels: Pixels, said: str, read: Callable[[bytes], tuple[_Decoded, str]]
) -> None:
    """`mended` is `data` with an end, `pixels` and `said` are what it gave. What libjpeg complains of is removed, until
    it is silent: if the picture is still the same, it is all there."""
    cut, left_over, first_said = mended is not data, False, said
    tidy = jpeg.tidied(mended) if said else None
    for _ in range(_MOST_COMPLAINTS):
        if tidy is None:
            break
        again, said = read(tidy)
        if again is None or not np.array_equal(again, pixels):
            _refuse_partial(mended, Format.JPEG, first_said, cut=cut)
            raise OutOfOrderError("restart markers are missing, or their numbers are out of order")
        tidy = jpeg.without_filling(tidy, said, rest=left_over) if said else None
        left_over = left_over or tidy is not None
    if said:
        _refuse_partial(mended, Format.JPEG, said, cut=cut)
    if cut and not left_over and jpeg.is_doubtful(data):
        try:
            foreign.decode(data, upright=False)
        except OutOfOrderError:
            raise EndsEarlyError from None


def _why_not(data: bytes, header: Header, said: str) -> ImageError:
    form = header.format
    reason = _reason(said)
    if _NO_MEMORY.search(said):
        return ImageError(
            Kind.DECODE_TOO_LARGE,
            f"decoding the {header} ran out of memory: lower preprocess.max_pixels",
        )
    if not is_complete(data, form):
        return _ends_early(data, header)
    if form is Format.JPEG and (process := jpeg.unsupported(data)):
        return ImageError(Kind.DECODE_UNSUPPORTED, f"the {header} is {process}, which featd does not read")
    if form is Format.GIF and not _reads_gif():
        return ImageError(
            Kind.DECODE_UNSUPPORTED, f"OpenCV {cv2.__version__} was built without GIF: install OpenCV 5"
        )
    if _UNSUPPORTED.search(said):
        which = tiff.directory(data) if form is Format.TIFF else f"a kind of {form}"
        return ImageError(
            Kind.DECODE_UNSUPPORTED, f"the {header} is {which}, which OpenCV does not read{reason}"
        )
    if _ENDED.search(said):
        return ImageError(Kind.DECODE_TRUNCATED, f"the {header} ends early{reason}")
    return ImageError(Kind.DECODE_CORRUPT, f"the {header} cannot be decoded{reason}")


def _reason(said: str) -> str:
    """`: ` and what OpenCV and its libraries said, without what its log puts around it and without the expressions of
    its source, each sentence once."""
    lines = (
        _LOG.sub("", line.strip()).strip(" :") for line in said.splitlines() if "Assertion failed" not in line
    )
    lines = (line for line in lines if not _EXPRESSION.search(line))
    text = "; ".join(dict.fromkeys(line for line in lines if any(map(str.isalpha, line))))
    if len(text) > _MOST_REASON:
        text = text[:_MOST_REASON] + " ..."
    return f": {text}" if text else ""


def _ends_early(data: bytes, header: Header) -> ImageError:
    return ImageError(Kind.DECODE_TRUNCATED, f"the {header} ends early, after {len(data)} bytes")


def _reads_gif() -> bool:
    pixel = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    with native_stderr():
        return cv2.imdecode(np.frombuffer(pixel, np.uint8), cv2.IMREAD_COLOR) is not None
