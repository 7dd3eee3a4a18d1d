"""Kinds of BMP, TIFF, PNG and PNM that programs differ about: read as OpenCV and Pillow read them, or refused as not
supported, with the reason in words that are not OpenCV's source."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from featd.errors import ImageError
from featd.images.corrections import change
from featd.images.decode import decode
from featd.states import Correction, Kind
from pictures import bmp, photo, saved, tiff

MOST = 10_000_000
RGB = np.asarray(photo())
ALPHA = np.arange(120 * 160).reshape(120, 160).astype(np.uint8)
BGRA = np.dstack([RGB[..., ::-1], ALPHA])[::-1].tobytes()  # rows from the bottom
USUAL = (0xFF0000, 0xFF00, 0xFF)


def rgb(data: bytes) -> np.ndarray:
    return decode(data, max_pixels=MOST)[..., ::-1]


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def by_cv2(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=MOST)
    return caught.value


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
def test_masks_of_zero_are_the_usual_ones(header: int) -> None:
    data = bmp(32, (0, 0, 0), BGRA, header=header)
    assert np.array_equal(by_pillow(data), RGB)
    assert np.array_equal(by_cv2(data)[..., ::-1], RGB)
    assert np.array_equal(rgb(data), RGB)
    assert not change(data, list(Correction))  # the first release read it right
    with_alpha = decode(data, max_pixels=MOST, alpha=True)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(with_alpha[..., 3], np.asarray(image.getchannel("A")))
    assert np.array_equal(with_alpha[..., 3], ALPHA)


def five_bits() -> tuple[bytes, np.ndarray]:
    levels = RGB.astype("<u2") >> 3
    body = (levels[..., 0] << 10 | levels[..., 1] << 5 | levels[..., 2])[::-1].astype("<u2").tobytes()
    return body, (levels.astype(int) * 255 // 31).astype(np.uint8)


@pytest.mark.parametrize("header", [40, 52, 124])
def test_masks_of_zero_in_16_bits(header: int) -> None:
    body, shown = five_bits()
    plain = bytearray(bmp(16, (0, 0, 0), body))
    plain[30] = 0  # no bit fields: the usual masks
    assert np.abs(rgb(bytes(plain)).astype(int) - shown).max() <= 7  # OpenCV shifts the levels
    assert np.array_equal(rgb(bmp(16, (0, 0, 0), body, header=header)), shown)


def test_no_masks_at_all() -> None:
    """The pixels begin where the masks would be."""
    for bits, body, shown in ((32, BGRA, RGB), (16, *five_bits())):
        data = bmp(bits, USUAL, body)
        without = data[:10] + struct.pack("<I", 54) + data[14:54] + data[66:]
        assert np.array_equal(rgb(without), shown)
    assert not change(bmp(32, USUAL, BGRA)[:10] + struct.pack("<I", 54) + bytes(200), list(Correction))


def test_masks_beyond_the_bits_of_a_pixel() -> None:
    body, shown = five_bits()
    assert np.array_equal(rgb(bmp(16, (0xABCD7C00, 0x3E0, 0x1F), body)), shown)


def test_fields_with_alpha_behind_the_first_header() -> None:
    data = bytearray(bmp(32, USUAL, b"\0\0\0\xff" + BGRA))
    data[30], data[10] = 6, 70
    assert np.array_equal(rgb(bytes(data)), RGB)
    assert np.array_equal(decode(bytes(data), max_pixels=MOST, alpha=True)[..., 3], ALPHA)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 24, 32, 64])
@pytest.mark.parametrize("coding", [0, 1, 2, 3, 4, 5, 6, 11])
def test_a_bmp_is_refused_only_where_opencv_refuses_it(bits: int, coding: int) -> None:
    body = bytes([2, 7]) * 80_000 if coding in (1, 2) else BGRA * 2
    data = bytearray(bmp(bits, (0, 0, 0), body, header=124))
    data[30] = coding
    if by_cv2(bytes(data)) is not None or (coding in (3, 6) and bits in (16, 32)):
        assert rgb(bytes(data)).shape == RGB.shape
    elif (coding, bits) not in ((1, 8), (2, 4)):  # these bytes are no good run lengths
        assert refusal(bytes(data)).kind is Kind.DECODE_UNSUPPORTED


@pytest.mark.parametrize(
    ("header", "bits", "coding", "reason"),
    [
        (40, 2, 0, "2 bits"),
        (40, 64, 0, "64 bits"),
        (40, 0, 4, "embedded JPEG"),
        (124, 0, 5, "embedded PNG"),
        (64, 24, 4, "run lengths of 24 bits"),
        (64, 1, 3, "Huffman"),
        (16, 24, 0, "16 bytes"),
        (40, 24, 3, "24 bits a pixel and the compression 3"),
    ],
)
def test_kinds_of_bmp_that_are_not_supported(header: int, bits: int, coding: int, reason: str) -> None:
    data = bytearray(bmp(bits, (0, 0, 0), BGRA * 2, header=header))
    data[30] = coding
    error = refusal(bytes(data))
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert reason in error.message


NO_CODEC = [9, 999, 32766, 32908, 33003, 33004, 33005, 34712, 34892, 34925, 34933, 34934, 50000, 50001, 50002]


@pytest.mark.parametrize("compression", NO_CODEC)
def test_compressions_of_tiff_without_a_codec(compression: int) -> None:
    error = refusal(tiff(8, zlib.compress(RGB.tobytes()), t262=2, t277=3, t259=compression))
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert f"compression {compression}" in error.message


@pytest.mark.parametrize("compression", [999, 32766, 34712])
def test_compressions_of_shallow_tiffs_without_a_codec(compression: int) -> None:
    error = refusal(tiff(4, RGB[..., 0].tobytes(), t259=compression))
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert f"compression {compression}" in error.message


def test_thunderscan() -> None:
    body = (RGB[..., 0] >> 4 | 0xC0).tobytes()  # each pixel as it is
    data = tiff(4, body, t259=32809)
    assert np.array_equal(rgb(data), np.dstack([(RGB[..., 0] >> 4) * 17] * 3))
    broken = refusal(tiff(4, body[:-4000], t259=32809))
    assert broken.kind is Kind.DECODE_CORRUPT
    assert "ThunderDecode" in broken.message


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("samples", [3, 4])
def test_shallow_tiffs_in_colour_are_not_supported(bits: int, samples: int) -> None:
    error = refusal(tiff(bits, RGB.tobytes(), t262=2 if samples == 3 else 5, t277=samples))
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert f"{samples} samples of {bits} bits" in error.message


def test_a_strip_with_more_bytes_than_it_can_need() -> None:
    data = tiff(8, RGB.tobytes() + bytes(1_200_000), t262=2, t277=3)
    assert np.array_equal(by_pillow(data), RGB)
    assert np.array_equal(rgb(data), RGB)


def test_a_cut_tiff_in_planes_is_cut() -> None:
    two = tiff(8, RGB.transpose(2, 0, 1).tobytes(), t262=2, t277=3, t284=2)
    assert refusal(two[:-9000]).kind is Kind.DECODE_TRUNCATED


@pytest.mark.parametrize("form", ["<f4", "<f8"])
def test_infinities_do_not_decide_what_floats_mean(form: str) -> None:
    shares = RGB.astype(form) / 255
    shares[0, :3] = [np.inf, -np.inf, np.nan], [np.inf] * 3, [-np.inf] * 3
    shown = RGB.copy()
    shown[0, :3] = [255, 0, 0], [255] * 3, [0] * 3
    assert np.array_equal(rgb(tiff(8 * int(form[2]), shares.tobytes(), t262=2, t277=3, t339=3)), shown)


def test_floats_are_taken_as_they_are_where_zero_is_white() -> None:
    """As `cv2.imread` and Pillow give them."""
    data = tiff(32, (RGB[..., 0].astype("<f4") / 255).tobytes(), t262=0, t339=3)
    assert np.array_equal(rgb(data), np.dstack([RGB[..., 0]] * 3))


def test_a_png_of_apple_is_not_supported() -> None:
    plain = saved(photo(), "PNG")
    body = b"CgBI\x50\0\x20\6"
    error = refusal(plain[:8] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + plain[8:])
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert "CgBI" in error.message


def test_an_unknown_chunk_that_cannot_be_left_out_is_not_supported() -> None:
    plain = saved(photo(), "PNG")
    chunk = struct.pack(">I", 0) + b"ABCD" + struct.pack(">I", zlib.crc32(b"ABCD"))
    assert refusal(plain[:33] + chunk + plain[33:]).kind is Kind.DECODE_UNSUPPORTED


@pytest.mark.parametrize("kind", [2, 3])
def test_numbers_whose_last_ends_with_the_file(kind: int) -> None:
    pixels = RGB if kind == 3 else RGB[..., 0]
    data = b"P%d 160 120 255\n" % kind + b" ".join(b"%d" % value for value in pixels.ravel())
    assert np.array_equal(rgb(data), by_pillow(data))
    assert np.array_equal(rgb(data), rgb(data + b"\n"))
    assert refusal(data[: data.rindex(b" ")]).kind is Kind.DECODE_TRUNCATED


def test_bits_whose_last_ends_with_the_file() -> None:
    bits = RGB[..., 0] > 128
    data = b"P1 160 120\n" + b" ".join(b"%d" % bit for bit in bits.ravel())
    assert np.array_equal(rgb(data), np.dstack([np.where(bits, 0, 255)] * 3))


def test_codecs_of_heic_that_are_not_supported() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = saved(photo(), "HEIF", quality=95)
    assert refusal(data.replace(b"hvc1", b"vvc1")).kind is Kind.DECODE_UNSUPPORTED


@pytest.mark.parametrize(
    "data",
    [
        tiff(16, RGB.tobytes(), t262=1, t339=3),
        tiff(8, RGB.tobytes() * 2, t262=2, t277=5),
        tiff(16, RGB.tobytes() * 3, t262=5, t277=4),
        saved(photo(), "WEBP", save_all=True, append_images=[photo().rotate(180)])[:200] + bytes(16_790),
    ],
)
def test_no_message_has_an_expression_of_opencvs_source(data: bytes) -> None:
    message = refusal(data).message
    for part in ("==", ">=", "&&", "||", "sample_format", "Assertion", "tif,", "where", "()"):
        assert part not in message, message
