"""From a file's bytes to pixels, by one decoder (OpenCV). A partial picture is an error, never a result.

Tests with OpenCV 5.0.0 and 4.11.0 (JPEG, PNG, GIF, BMP, TIFF and WebP, cut at 10 to 99 %, with holes and flipped bits)
showed that `imdecode` returns None for every file that is cut short, but a partly grey JPEG or a partly black TIFF
where the data stops and an end marker follows (a hole, a lost block, an appended tail). libjpeg and libtiff then only
print a message to stderr, so stderr is read here. Pillow accepts such files without a message.
"""

from __future__ import annotations

import re

import cv2
import numpy as np
import numpy.typing as npt

from featd.errors import ImageError
from featd.images.header import Format, Header, is_complete, is_padding_before_end, probe
from featd.images.native_stderr import native_stderr
from featd.states import Kind

DECODER = "opencv/1"
"""Name and revision of the decoder for the fingerprint. Raise the revision when the same file would give other
pixels on purpose; a library upgrade does not count."""

Pixels = npt.NDArray[np.uint8]

_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PARTIAL = re.compile(
    r"Corrupt JPEG data.*|Premature end.*|Inconsistent progression.*|(?<=TIFF_Error ).*|Invalid SOS param.*"
)
_ENDED = re.compile(r"(?i)premature end|not enough (image )?data|unexpected end|is incomplete|truncated")
_NO_MEMORY = re.compile(r"(?i)insufficient memory|failed to allocate|out of memory|bad_alloc")
_UNSUPPORTED = re.compile(r"(?i)unsupported|can ?not handle|not supported|not implemented|unimplemented")


def decode(
    data: bytes,
    *,
    max_pixels: int,
    gray: bool = False,
    orientation: str = "apply",
    stderr: int | None = None,
) -> Pixels:
    """The (first) picture of `data`: uint8 (H, W, 3) in BGR order, or (H, W) if `gray`.

    16 bits become 8, alpha is dropped, palettes, CMYK and single bits become colour or grey. `orientation`
    "apply" rotates the picture as its EXIF says, "ignore" does not. `stderr` is for `native_stderr`. ImageError:
    decode.unsupported, decode.too_large (judged from the header, before anything is decoded), decode.truncated,
    decode.corrupt.
    """
    header = probe(data)
    if header.width * header.height > max_pixels:
        raise ImageError(
            Kind.DECODE_TOO_LARGE,
            f"{header.width}x{header.height} pixels exceed preprocess.max_pixels = {max_pixels}",
        )
    # OpenCV 5 allocates the length that a PNG chunk claims before it checks the file's size: one flipped byte in a
    # length cost 3.8 GB and 7 s (14 kB file). So the chunks must fit the file first.
    if header.format is Format.PNG and not is_complete(data, Format.PNG):
        raise _ends_early(data, header)
    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    if orientation == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    failure = ""
    pixels: Pixels | None = None
    with native_stderr(stderr) as heard:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            failure = str(error)
        except MemoryError as error:
            failure = f"out of memory {error}"
    said = "".join(heard) + failure
    if pixels is None:
        raise _why_not(data, header, said)
    if said:
        _refuse_partial(data, header.format, said)
    # A header with another size than the decoded picture has bypassed the limit above.
    if sorted(pixels.shape[:2]) != sorted((header.width, header.height)):
        raise ImageError(
            Kind.DECODE_CORRUPT,
            f"the {header.format}'s header says {header.width}x{header.height}, "
            f"but the picture has {pixels.shape[1]}x{pixels.shape[0]} pixels",
        )
    return pixels


def _refuse_partial(data: bytes, form: Format, said: str) -> None:
    for match in _PARTIAL.finditer(said):
        complaint = match[0].strip()
        # Some cameras write padding before the end marker, and every row is there. Picture data that is left over in
        # that place means that the decoder has failed.
        left_over = _LEFT_OVER.search(complaint)
        if left_over and form is Format.JPEG and is_padding_before_end(data, int(left_over[1])):
            continue
        kind = Kind.DECODE_TRUNCATED if _ENDED.search(complaint) else Kind.DECODE_CORRUPT
        raise ImageError(kind, f"only part of the {form} could be decoded: {complaint}")


def _why_not(data: bytes, header: Header, said: str) -> ImageError:
    form = header.format
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = f": {lines[-1][:300]}" if lines else ""
    if _NO_MEMORY.search(said):
        return ImageError(
            Kind.DECODE_TOO_LARGE,
            f"decoding the {header} ran out of memory: lower preprocess.max_pixels",
        )
    if not is_complete(data, form):
        return _ends_early(data, header)
    if form is Format.GIF and not _reads_gif():
        return ImageError(
            Kind.DECODE_UNSUPPORTED, f"OpenCV {cv2.__version__} was built without GIF: install OpenCV 5"
        )
    if _UNSUPPORTED.search(said):
        return ImageError(Kind.DECODE_UNSUPPORTED, f"a kind of {form} that OpenCV does not read{reason}")
    if _ENDED.search(said):
        return ImageError(Kind.DECODE_TRUNCATED, f"the {header} ends early{reason}")
    return ImageError(Kind.DECODE_CORRUPT, f"the {header} cannot be decoded{reason}")


def _ends_early(data: bytes, header: Header) -> ImageError:
    return ImageError(Kind.DECODE_TRUNCATED, f"the {header} ends early, after {len(data)} bytes")


def _reads_gif() -> bool:
    pixel = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    with native_stderr():
        return cv2.imdecode(np.frombuffer(pixel, np.uint8), cv2.IMREAD_COLOR) is not None
