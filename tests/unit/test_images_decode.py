"""Every kind of file that image folders hold: good ones decode, bad ones say why, none gives half a picture."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from featd.errors import ImageError
from featd.images.decode import decode
from featd.images.header import Format, is_complete, probe
from featd.states import Kind
from pictures import by_cv2, exif, photo, saved

MOST = 10_000_000


HEIC = importlib.util.find_spec("pillow_heif") is not None
if HEIC:
    importlib.import_module("pillow_heif").register_heif_opener()


def _good() -> dict[str, bytes]:
    image = photo()
    palette = image.convert("P")
    turned = [image.rotate(9 * at) for at in (1, 2)]
    deep = np.asarray(image)[:, :, ::-1].astype(np.uint16) * 257
    return {
        "jpeg": saved(image, "JPEG"),
        "jpeg progressive": saved(image, "JPEG", progressive=True),
        "jpeg grey": saved(image.convert("L"), "JPEG"),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG"),
        "jpeg restarts": saved(image, "JPEG", restart_marker_rows=1),
        "jpeg in two parts": saved(image, "MPO", save_all=True, append_images=turned),
        "png": saved(image, "PNG"),
        "png 16 bits": by_cv2(".png", deep),
        "png palette": saved(palette, "PNG"),
        "png one bit": saved(image.convert("1"), "PNG"),
        "png alpha": saved(image.convert("RGBA"), "PNG"),
        "png grey alpha": saved(image.convert("LA"), "PNG"),
        "png animated": saved(image, "PNG", save_all=True, append_images=turned),
        "gif": saved(palette, "GIF"),
        "gif animated": saved(
            palette, "GIF", save_all=True, append_images=[one.convert("P") for one in turned]
        ),
        "bmp": saved(image, "BMP"),
        "bmp palette": saved(palette, "BMP"),
        "bmp one bit": saved(image.convert("1"), "BMP"),
        "tiff": saved(image, "TIFF"),
        "tiff lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": saved(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff packbits": saved(image, "TIFF", compression="packbits"),
        "tiff jpeg": saved(image, "TIFF", compression="jpeg"),
        "tiff cmyk": saved(image.convert("CMYK"), "TIFF"),
        "tiff fax": saved(image.convert("1"), "TIFF", compression="group4"),
        "tiff 16 bits": by_cv2(".tiff", deep),
        "webp": saved(image, "WEBP"),
        "webp lossless": saved(image, "WEBP", lossless=True),
        "webp alpha": saved(image.convert("RGBA"), "WEBP", lossless=True),
        "webp animated": saved(image, "WEBP", lossless=True, save_all=True, append_images=turned),
        "ppm": saved(image, "PPM"),
        "pgm grey": saved(image.convert("L"), "PPM"),
        "pbm one bit": saved(image.convert("1"), "PPM"),
        **({"avif": saved(image, "AVIF", quality=90)} if features.check("avif") else {}),
        **({"heic": saved(image, "HEIF", quality=90)} if HEIC else {}),
    }


GOOD = _good()
READS_GIF = cv2.imdecode(np.frombuffer(GOOD["gif"], np.uint8), cv2.IMREAD_COLOR) is not None
NAMES = [name for name in GOOD if READS_GIF or not name.startswith("gif")]
COARSE = ("one bit", "palette", "gif", "fax", "cmyk")


@pytest.mark.parametrize("name", NAMES)
def test_good_files_decode(name: str) -> None:
    pixels = decode(GOOD[name], max_pixels=MOST)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (120, 160, 3))
    original = cv2.cvtColor(np.asarray(photo()), cv2.COLOR_RGB2BGR).astype(int)
    if "grey" in name:
        original = cv2.cvtColor(original.astype(np.uint8), cv2.COLOR_BGR2GRAY)[..., None].astype(int)
    off = np.abs(
        cv2.blur(pixels, (16, 16)).astype(int) - np.atleast_3d(cv2.blur(original.astype(np.uint8), (16, 16)))
    )
    assert off.mean() < (40 if any(word in name for word in COARSE) else 6)
    assert np.array_equal(pixels, decode(GOOD[name], max_pixels=MOST))  # deterministic
    grey = decode(GOOD[name], max_pixels=MOST, gray=True)
    assert (grey.dtype, grey.shape) == (np.uint8, (120, 160))


@pytest.mark.parametrize("name", GOOD)
def test_headers_agree_with_pillow(name: str) -> None:
    with Image.open(io.BytesIO(GOOD[name])) as image:
        expected = image.size
    header = probe(GOOD[name])
    assert (header.width, header.height) == expected
    assert is_complete(GOOD[name], header.format)


@pytest.mark.parametrize("name", GOOD)
def test_a_cut_file_is_never_a_partial_picture(name: str) -> None:
    """Cut anywhere from 1 to 99 %: either an error, or (where only later pictures are missing) the whole one."""
    whole = decode(GOOD[name], max_pixels=MOST) if name in NAMES else None
    data = GOOD[name]
    kinds: dict[int, Kind] = {}
    for percent in range(1, 100, 2):
        try:
            pixels = decode(data[: len(data) * percent // 100], max_pixels=MOST)
        except ImageError as error:
            kinds[percent] = error.kind
        else:
            assert whole is not None
            assert np.array_equal(pixels, whole), f"{percent} %"
    assert {kind for percent, kind in kinds.items() if percent > 5} == {Kind.DECODE_TRUNCATED}, kinds


END = {
    "jpeg": b"\xff\xd9",
    "png": b"\0\0\0\0IEND\xaeB`\x82" + bytes(4),
}  # with the checksum of the last chunk


def test_the_last_byte_counts() -> None:
    for name in ("jpeg", "png", "webp", "bmp", "ppm"):
        with pytest.raises(ImageError) as caught:
            decode(GOOD[name][: -1 - len(END.get(name, b""))], max_pixels=MOST)
        assert caught.value.kind is Kind.DECODE_TRUNCATED


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg restarts", "jpeg grey", "jpeg cmyk"])
def test_a_jpeg_with_a_hole_is_never_a_partial_picture(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The end marker is there, so OpenCV gives a partly grey picture; libjpeg's complaint gives it away."""
    data = GOOD[name]
    half = len(data) // 2
    holes = {
        "the rest is missing": data[:half] + b"\xff\xd9",
        "a zeroed block": data[:half] + bytes(1024) + data[half + 1024 :],
        "a lost block": data[:half] + data[half + 1024 :],
        "glued to another": data[:half] + data,
    }
    for what, holed in holes.items():
        if what == "the rest is missing":  # this is why we listen
            assert cv2.imdecode(np.frombuffer(holed, np.uint8), cv2.IMREAD_COLOR) is not None
            assert "Corrupt JPEG data" in capfd.readouterr().err
        with pytest.raises(ImageError) as caught:
            decode(holed, max_pixels=MOST)
        assert caught.value.kind in (Kind.DECODE_TRUNCATED, Kind.DECODE_CORRUPT)
        assert capfd.readouterr().err == ""


@pytest.mark.skipif(cv2.__version__.startswith("4.11"), reason="OpenCV 4.11 swallows libtiff's complaints")
@pytest.mark.parametrize("name", ["tiff lzw", "tiff jpeg"])
def test_a_tiff_with_a_hole_is_never_a_partial_picture(name: str) -> None:
    data = GOOD[name]
    start = len(data) // 3
    with pytest.raises(ImageError) as caught:
        decode(data[:start] + bytes(600) + data[start + 600 :], max_pixels=MOST)
    assert caught.value.kind in (Kind.DECODE_TRUNCATED, Kind.DECODE_CORRUPT)


def test_padding_and_trailing_bytes_are_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    whole = decode(GOOD["jpeg"], max_pixels=MOST)
    for value in (0, 0x20, 0xFE):
        padded = GOOD["jpeg"][:-2] + bytes([value]) * 50 + b"\xff\xd9"
        assert np.array_equal(decode(padded, max_pixels=MOST), whole)
    for name in ("jpeg", "png", "bmp", "webp", "tiff"):
        decode(GOOD[name] + b"trailing junk", max_pixels=MOST)
    assert capfd.readouterr().err == ""


def test_a_flipped_png_is_corrupt() -> None:
    data = bytearray(GOOD["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError) as caught:
        decode(bytes(data), max_pixels=MOST)
    assert caught.value.kind is Kind.DECODE_CORRUPT
    assert "libpng error" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"this is text, whatever its name says\n",
        b"BMW is not a bitmap, though it begins like one; neither is this text of some length\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"P6 is the sixth part of what this text says\n",
        b"x",
    ],
)
def test_what_is_not_on_the_list_is_unsupported(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=MOST)
    assert caught.value.kind is Kind.DECODE_UNSUPPORTED


def test_an_empty_file_is_corrupt() -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"", max_pixels=MOST)
    assert caught.value.kind is Kind.DECODE_CORRUPT
    assert "empty" in caught.value.message


def test_pictures_that_opencv_cannot_read_are_unsupported() -> None:
    with pytest.raises(ImageError) as caught:
        decode(saved(photo().convert("I"), "TIFF"), max_pixels=MOST)
    assert caught.value.kind is Kind.DECODE_UNSUPPORTED


@pytest.mark.parametrize("name", NAMES)
def test_too_many_pixels_are_refused_by_name(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(GOOD[name], max_pixels=160 * 120 - 1)
    assert caught.value.kind is Kind.DECODE_TOO_LARGE
    assert "160x120" in caught.value.message
    assert "max_pixels" in caught.value.message
    decode(GOOD[name], max_pixels=160 * 120)


@functools.cache
def bomb() -> bytes:
    """A PNG of 12000x12000 in 420 kB."""
    rows = zlib.compressobj(9)
    line = b"\0" + bytes(12_000 * 3)
    data = b"".join(rows.compress(line) for _ in range(12_000)) + rows.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_bomb_costs_no_memory() -> None:
    data = bomb()
    assert 400_000 < len(data) < 450_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="12000x12000") as caught:
        decode(data, max_pixels=100_000_000)
    assert caught.value.kind is Kind.DECODE_TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize("name", ["png", "png palette", "png animated"])
def test_a_png_chunk_that_claims_gigabytes_costs_no_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = bytearray(GOOD[name])
    data[33] = 0xEC  # the highest byte of the second chunk's length
    with pytest.raises(ImageError) as caught:
        decode(bytes(data), max_pixels=MOST)
    assert caught.value.kind is Kind.DECODE_TRUNCATED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_no_memory_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    script = """
import resource, sys
from featd.images.decode import decode
from featd.errors import ImageError
data = open(sys.argv[1], "rb").read()
now = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + 200_000_000, resource.RLIM_INFINITY))
try:
    decode(data, max_pixels=10**9)
except ImageError as error:
    print(error.kind)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "bomb.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "decode.too_large\n"


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_turns_the_picture_or_not(form: str) -> None:
    data = saved(photo(), form, exif=exif(6))
    upright = decode(data, max_pixels=MOST)
    stored = decode(data, max_pixels=MOST, orientation="ignore")
    assert upright.shape == (160, 120, 3)
    assert stored.shape == (120, 160, 3)
    assert np.array_equal(upright, cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE))


def test_every_orientation_has_its_own_pixels() -> None:
    seen = {decode(saved(photo(), "JPEG", exif=exif(at)), max_pixels=MOST).tobytes() for at in range(1, 9)}
    assert len(seen) == 8


@pytest.mark.skipif(not READS_GIF, reason="this OpenCV reads no GIF")
@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_counts(form: str) -> None:
    first = {"gif": "gif", "webp": "webp lossless", "png": "png"}[form]
    assert np.array_equal(
        decode(GOOD[f"{form} animated"], max_pixels=MOST), decode(GOOD[first], max_pixels=MOST)
    )


@pytest.mark.skipif(
    cv2.__version__.startswith("4."), reason="OpenCV 4.11 segfaults: why decoders are processes"
)
def test_random_damage_never_escapes_as_another_error() -> None:
    """300 files with a few bytes overwritten: pixels of the right size, or an ImageError."""
    seed = 20261124
    random = np.random.default_rng(seed)
    for turn in range(300):
        name = NAMES[turn % len(NAMES)]
        data = bytearray(GOOD[name])
        for at in random.integers(0, len(data), random.integers(1, 8)):
            data[at] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            pixels = decode(bytes(data), max_pixels=100_000)
            header = probe(bytes(data))
            assert sorted(pixels.shape[:2]) == sorted((header.height, header.width)), (seed, turn)


def test_all_formats_are_tested() -> None:
    assert {probe(data).format for data in GOOD.values()} == set(Format) - (set() if HEIC else {Format.HEIC})
