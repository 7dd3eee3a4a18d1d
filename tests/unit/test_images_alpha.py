"""The alpha of pictures: as Pillow reads it, beside the colours that are read without it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from featd.errors import ImageError
from featd.images.decode import decode
from featd.states import Kind
from pictures import bmp, by_cv2, exif, photo, saved, tiff

MOST = 10**6


def with_alpha() -> Image.Image:
    image = photo().copy()
    image.putalpha(photo().rotate(180).convert("L"))
    return image


RGBA = np.asarray(with_alpha())
BGRA = np.dstack([RGBA[..., 2::-1], RGBA[..., 3]])
GREY = with_alpha().convert("LA")
BYTES = RGBA.tobytes()
KEY = tuple(int(level) for level in RGBA[5, 7, :3])

FILES = {
    "png": saved(with_alpha(), "PNG"),
    "grey png": saved(GREY, "PNG"),
    "png of 16 bits": by_cv2(".png", BGRA.astype(np.uint16) * 257 + 3),
    "png with a palette": saved(photo().convert("P"), "PNG", transparency=bytes(range(256))),
    "png with one transparent colour": saved(photo(), "PNG", transparency=KEY),
    "png with one transparent grey": saved(photo().convert("L"), "PNG", transparency=90),
    "animated png": saved(with_alpha(), "PNG", save_all=True, append_images=[with_alpha().rotate(180)]),
    "turned png": saved(with_alpha(), "PNG", exif=exif(6)),
    "webp": saved(with_alpha(), "WEBP", lossless=True, exact=True),
    "turned webp": saved(with_alpha(), "WEBP", exif=exif(8)),
    "tiff": saved(with_alpha(), "TIFF"),
    "lzw tiff": saved(with_alpha(), "TIFF", compression="tiff_lzw"),
    "turned tiff": saved(with_alpha(), "TIFF", exif=exif(5)),
    "grey tiff": saved(GREY, "TIFF"),
    "tiff with an unspecified sample": tiff(8, BYTES, t262=2, t277=4, t338=0),
    "gif": saved(photo().quantize(30), "GIF", transparency=3),
    "bmp": by_cv2(".bmp", BGRA),
    "jpeg": saved(photo(), "JPEG"),
    "plain png": saved(photo(), "PNG"),
    "ppm": saved(photo(), "PPM"),
    "cmyk tiff": saved(photo().convert("CMYK"), "TIFF"),
}
if features.check("avif"):
    FILES["avif"] = saved(with_alpha(), "AVIF")


def theirs(data: bytes, *, upright: bool = True) -> np.ndarray:
    """uint8 (H, W), by Pillow."""
    from PIL import ImageOps

    image: Image.Image = Image.open(io.BytesIO(data))
    if upright:
        image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGBA").getchannel("A"))


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("orientation", ["apply", "ignore"])
def test_alpha_beside_the_colours(what: str, orientation: str) -> None:
    data = FILES[what]
    expected = theirs(data, upright=orientation == "apply")
    if what == "tiff with an unspecified sample" or (what, orientation) == ("turned tiff", "ignore"):
        expected = RGBA[..., 3]  # Pillow takes the sample for nothing, and always turns a TIFF
    for gray in (False, True):
        pixels = decode(data, max_pixels=MOST, gray=gray, alpha=True, orientation=orientation)
        colours = decode(data, max_pixels=MOST, gray=gray, orientation=orientation)
        assert np.array_equal(pixels[..., :-1].reshape(colours.shape), colours)
        assert np.array_equal(pixels[..., -1], expected)


@pytest.mark.parametrize("masks", [(0xFF000000, 0xFF0000, 0xFF00), (0xFF0000, 0xFF00, 0xFF)])
def test_the_alpha_of_bit_fields(masks: tuple[int, int, int]) -> None:
    alpha_mask = 0xFFFFFFFF ^ sum(masks)
    data = bytearray(bmp(32, masks, BYTES, header=56))
    assert (decode(bytes(data), max_pixels=MOST, alpha=True)[..., 3] == 255).all(), "no mask, no alpha"
    data[66:70] = alpha_mask.to_bytes(4, "little")
    pixels = decode(bytes(data), max_pixels=MOST, alpha=True)
    place = (alpha_mask & -alpha_mask).bit_length() // 8
    assert np.array_equal(pixels[..., 3], RGBA[::-1, :, place])


def test_floats_are_scaled_with_their_alpha() -> None:
    data = by_cv2(".tif", BGRA.astype(np.float32) / 255)
    assert np.array_equal(decode(data, max_pixels=MOST, alpha=True), BGRA)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(8, BYTES, t262=1, t277=4, t338=0), "4 samples of grey, not of colours and alpha"),
        (tiff(8, BYTES, t262=1, t277=3), "3 samples of grey"),
        (tiff(16, BYTES, t262=1, t277=2, t338=2), "grey TIFF with alpha of another kind than 8 bits"),
        (tiff(8, BYTES, t262=1, t277=2), "grey TIFF with alpha of another kind than 8 bits"),
    ],
)
def test_an_alpha_that_cannot_be_read_is_no_opaque_picture(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(data, max_pixels=MOST, alpha=True)
    assert caught.value.kind is Kind.DECODE_UNSUPPORTED
    decode(data, max_pixels=MOST)  # without alpha, it is read as ever


def test_a_cut_file_is_refused_with_alpha_too() -> None:
    for what in ("png", "webp", "tiff", "grey tiff", "gif"):
        data = FILES[what]
        with pytest.raises(ImageError):
            decode(data[: len(data) // 2], max_pixels=MOST, alpha=True)
