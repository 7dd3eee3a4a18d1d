"""Pictures that OpenCV does not read, or not all of, and Pillow does. Pillow is loaded when the first of them comes.

AVIF is Pillow's own, where it is built in; HEIC needs pillow-heif, the extra `heif`.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from featd.images import tiff
from featd.images.exif import turn
from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

_AGAIN = "then run `featd retry-failed --kind decode.unsupported`"
_WAYS_OUT = {
    "HEIF": f"HEIC needs pillow-heif: pip install 'featd[heif]', {_AGAIN}",
    "AVIF": f"this Pillow was built without AVIF: pip install --upgrade pillow, {_AGAIN}",
}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_CODECS = {"HEIF": (b"hvc1", b"hev1"), "AVIF": (b"av01",)}
"""How the items of a file that the decoders read are named (ISO/IEC 23008-12, annex B; AV1 Image File Format, 2)."""
_ORIENTATION = 274
_RAISED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""Whatever Pillow and its plugins raise on a damaged file."""


def is_avif(data: bytes) -> bool:
    """Whether the brands of an ISO media file name AVIF (ISO/IEC 14496-12, 4.3)."""
    return any(brand in _AVIF_BRANDS for brand in _brands(data))


def is_heic(data: bytes) -> bool:
    """Whether they name HEIC, and not AVIF."""
    return any(brand in _HEIC_BRANDS for brand in _brands(data)) and not is_avif(data)


def _brands(data: bytes) -> list[bytes]:
    if data[4:8] != b"ftyp":
        return []
    box = data[: min(int.from_bytes(data[:4], "big"), 256)]
    return [box[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))]


def size(data: bytes) -> tuple[int, int]:
    """(width, height), without decoding."""
    with _opened(data) as image:
        return image.size


def orientation(data: bytes) -> int:
    """As in EXIF, 1 to 8; Pillow finds that of an AVIF's own header, too."""
    with _opened(data) as image, _told(data):
        return int(image.getexif().get(_ORIENTATION, 1))


def is_complete(data: bytes) -> bool:
    """Whether the boxes at the top end within the data."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length < 8:
            return length == 0  # it reaches to the end
        at += length
    return at == len(data)


def decode(data: bytes, *, upright: bool) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3), BGR. A HEIC is always turned: its orientation is a part of the format."""
    with _opened(data) as image, _told(data):
        turned = image.getexif().get(_ORIENTATION, 1) if upright else 1
        pixels = np.asarray(image.convert("RGB"))
    return turn(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), turned)


def alpha(data: bytes) -> npt.NDArray[np.uint8] | None:
    """uint8 (H, W), not turned but for a HEIC; None where the picture has none."""
    with _opened(data) as image, _told(data):
        return np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None


@contextmanager
def _told(data: bytes) -> Iterator[None]:
    """Pillow's errors while it decodes, in the words of these modules."""
    try:
        yield
    except _RAISED as error:
        if _is_cut(data) or isinstance(error, EOFError) or "truncated" in str(error):
            raise EndsEarlyError from None
        raise OutOfOrderError(str(error)) from None


def _is_cut(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and not is_complete(data)


def _opened(data: bytes) -> Image:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # preprocess.max_pixels is the limit
    form = "PNG" if data.startswith(b"\x89PNG") else "JPEG" if data.startswith(b"\xff\xd8") else "TIFF"
    if data[4:8] == b"ftyp":
        form = "AVIF" if is_avif(data) else "HEIF"
        _load_plugin(form)
    try:
        with warnings.catch_warnings(action="ignore"):  # they tell of tags that are not needed
            return Image.open(io.BytesIO(data), formats=[form])
    except _RAISED as error:
        if _is_cut(data) or isinstance(error, EOFError):
            raise EndsEarlyError from None
        if form == "TIFF":  # its directory has been read before, so that only its kind is left
            raise UnsupportedError(str(tiff.directory(data))) from None
        if form in _CODECS and not any(codec in data for codec in _CODECS[form]):
            raise UnsupportedError("no decoder here reads its codec") from None
        raise OutOfOrderError("Pillow cannot open it") from error


def _load_plugin(form: str) -> None:
    """UnsupportedError where it is missing. One thread decodes, since each takes some of the limited memory."""
    try:
        if form == "HEIF":
            plugin = importlib.import_module("pillow_heif")
            plugin.options.DECODE_THREADS = 1
            plugin.register_heif_opener()
        else:
            plugin = importlib.import_module("PIL.AvifImagePlugin")
            if not plugin.SUPPORTED:
                raise ImportError
            vars(plugin)["DEFAULT_MAX_THREADS"] = 1
    except ImportError:
        raise UnsupportedError(_WAYS_OUT[form]) from None
