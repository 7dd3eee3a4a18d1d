"""A process that makes thumbnails for people, run by the page as `python -m featd.decoders.thumbnails --parent PID`.

A request is a line of JSON on standard input; its answer is four bytes of length and a JPEG on standard output, empty
where no picture can be made. The process ends with its input. A thumbnail shows what can be seen of a damaged picture,
too: unlike a vector, it may be of a part.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import sys
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps

from featd.decoders.limits import bound_memory, settle_in
from featd.errors import ImageError
from featd.images.decode import decode
from featd.images.read import read_image
from featd.paths import from_catalog

LENGTH = struct.Struct(">I")
BOX = (320, 240)
QUALITY = 80
MOST_PIXELS = 100_000_000
_PLAIN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
"""Modes of Pillow with 8 bits or less to a channel."""


def thumbnail(data: bytes) -> bytes | None:
    """A JPEG of at most BOX pixels, turned as its EXIF says; None where nothing can be seen."""
    picture = _tolerant(data) or _strict(data)
    if picture is None:
        return None
    picture.thumbnail(BOX, Image.Resampling.LANCZOS)
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    made = io.BytesIO()
    picture.convert("RGB").save(made, "jpeg", quality=QUALITY, optimize=True)
    return made.getvalue()


def _tolerant(data: bytes) -> Image.Image | None:
    """What Pillow can make of it: fast for large JPEGs, and the first part of files that are cut."""
    try:
        picture: Image.Image = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MOST_PIXELS or picture.mode not in _PLAIN:
            return None
        picture.draft("RGB", (2 * BOX[0], 2 * BOX[1]))
        return ImageOps.exif_transpose(picture)
    except Exception:  # its readers raise almost anything
        return None


def _strict(data: bytes) -> Image.Image | None:
    """As the workers read it: forms that Pillow does not know, or not well."""
    try:
        pixels = decode(data, max_pixels=MOST_PIXELS, stderr=2)
    except (ImageError, MemoryError):
        return None
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 2::-1]))


def answer(request: str) -> bytes:
    """The thumbnail of an image, read beneath its root and only in the version that the catalog knows; or nothing."""
    asked = json.loads(request)
    try:
        root = os.open(asked["root"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = read_image(
                root,
                from_catalog(asked["path"]),
                asked["size"],
                asked["mtime_ns"],
                follow_symlinks=asked["follow"],
            )
        finally:
            os.close(root)
        return thumbnail(file.data) or b""
    except (OSError, ImageError, MemoryError):
        return b""


def main() -> None:
    """Main function."""
    parser = argparse.ArgumentParser(prog="featd.decoders.thumbnails", allow_abbrev=False)
    parser.add_argument("--parent", type=int, required=True)
    settle_in(parser.parse_args().parent)
    bound_memory(MOST_PIXELS)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    Image.MAX_IMAGE_PIXELS = None  # MOST_PIXELS is the limit
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        made = answer(line)
        sys.stdout.buffer.write(LENGTH.pack(len(made)) + made)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
