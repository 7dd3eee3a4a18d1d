"""Small pictures in many formats, made by Pillow, by OpenCV, or byte by byte."""

from __future__ import annotations

import functools
import io
import struct

import cv2
import numpy as np
import pillow_heif
from PIL import Image

from featd.preprocess.golden_pictures import golden_pictures


@functools.cache
def photo() -> Image.Image:
    """A picture with something everywhere, so that a missing part shows: 160 wide, 120 high."""
    pictures = golden_pictures()
    mixed = cv2.addWeighted(pictures[2], 0.5, pictures[4], 0.5, 0)
    return Image.fromarray(cv2.cvtColor(cv2.resize(mixed, (160, 120)), cv2.COLOR_BGR2RGB))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def by_cv2(extension: str, pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(extension, pixels)[1])


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def tiff(bits: int, data: bytes, *, order: str = "<", **tags: int) -> bytes:
    """A TIFF of 160x120 with one strip, `bits` a sample. `tags`: t274=6 is tag 274 with a SHORT of 6."""
    found = {256: 160, 257: 120, 258: bits, 259: 1, 262: 1, 277: 1, 278: 120}
    found |= {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(found) + 2) + 4
    shorts = {tag: (3, struct.pack(order + "HH", value, 0)) for tag, value in found.items()}
    longs = {tag: (4, struct.pack(order + "I", value)) for tag, value in ((273, start), (279, len(data)))}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(found) + 2)
    for tag, (kind, value) in sorted((shorts | longs).items()):
        out += struct.pack(order + "HHI", tag, kind, 1) + value
    return out + bytes(4) + data


def bmp(bits: int, masks: tuple[int, int, int], pixels: bytes, *, header: int = 40) -> bytes:
    """A BMP of 160x120 with bit fields, rows from the bottom; `header`: the size of its second header."""
    info = struct.pack("<IiiHHIIiiII", header, 160, 120, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    info += struct.pack("<III", *masks) + bytes(max(header - 52, 0))
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + pixels


@functools.cache
def formats() -> dict[str, bytes]:
    """A picture of each format, and of its kinds that are read by different code."""
    pillow_heif.register_heif_opener()
    image, rgb = photo(), np.asarray(photo())
    grey, palette, cmyk, alpha = (image.convert(form) for form in ("L", "P", "CMYK", "RGBA"))
    deep = rgb.astype(np.uint16) * 257
    found = {
        "jpeg": saved(image, "JPEG", exif=exif(6)),
        "jpeg, progressive": saved(image, "JPEG", progressive=True),
        "jpeg, restarts": saved(image, "JPEG", restart_marker_rows=1),
        "jpeg, grey": saved(grey, "JPEG"),
        "jpeg, cmyk": saved(cmyk, "JPEG"),
        "png": saved(image, "PNG"),
        "png, alpha": saved(alpha, "PNG"),
        "png, palette": saved(palette, "PNG", bits=8),
        "png, 16 bits": by_cv2(".png", deep),
        "gif": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "bmp": saved(image, "BMP"),
        "bmp, palette": saved(palette, "BMP"),
        "bmp, bit fields": bmp(16, (0xF800, 0x7E0, 0x1F), bytes(160 * 120 * 2)),
        "webp": saved(image, "WEBP"),
        "webp, lossless alpha": saved(alpha, "WEBP", lossless=True),
        "tiff": tiff(8, rgb.tobytes(), t262=2, t277=3),
        "tiff, 16 bits": by_cv2(".tiff", deep),
        "ppm": saved(image, "PPM"),
        "pgm": saved(grey, "PPM"),
        "avif": saved(image, "AVIF"),
        "heif": saved(image, "HEIF"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"tiff, {compression}"] = saved(image, "TIFF", compression=compression)
    found["tiff, group4"] = saved(image.convert("1"), "TIFF", compression="group4")
    return found
