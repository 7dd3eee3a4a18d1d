"""Odd files that programs and cameras write: what `cv2.imread` and Pillow both read is read, with these pixels, and
what is really cut is refused. Each test is about one way in which the decoder departs from `cv2.imdecode`."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, features

from featd.errors import ImageError
from featd.images.decode import decode
from featd.states import Kind
from pictures import bmp, by_cv2, exif, photo, saved, tiff

MOST = 10_000_000
RGB = np.asarray(photo())
JPEG = saved(photo(), "JPEG")
PROGRESSIVE = saved(photo(), "JPEG", progressive=True)
PNG = saved(photo(), "PNG")
GIF = saved(photo().convert("P"), "GIF")
SCAN = JPEG.index(b"\xff\xda")
READS_GIF = cv2.imdecode(np.frombuffer(GIF, np.uint8), cv2.IMREAD_COLOR) is not None
needs_gif = pytest.mark.skipif(not READS_GIF, reason="this OpenCV reads no GIF")


def rgb(data: bytes, **options: object) -> np.ndarray:
    return decode(data, max_pixels=MOST, **options)[..., ::-1]


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def refusal(data: bytes, max_pixels: int = MOST) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    return caught.value


def kind_of(data: bytes) -> Kind:
    return refusal(data).kind


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def whole_with(what: str) -> bytes:
    """A JPEG that is all there, about which libjpeg complains."""
    quantization = JPEG.index(b"\xff\xdb")
    return {
        "no range in a baseline scan": JPEG[: SCAN + 11] + bytes(3) + JPEG[SCAN + 14 :],
        "zeros before the tables": JPEG[:quantization] + bytes(2) + JPEG[quantization:],
        "zeros before the scan": JPEG[:SCAN] + bytes(5) + JPEG[SCAN:],
        "bytes that look like no marker before the scan": JPEG[:SCAN] + b"\xff\0abc\xff\0" + JPEG[SCAN:],
        "fill bytes": JPEG[:2] + b"\xff\xff\xff" + JPEG[2:SCAN] + b"\xff" * 9 + JPEG[SCAN:],
        "text before the end": JPEG[:-2] + b"Toy camera, frame 17\r\nexposure 1/60\0\0" + JPEG[-2:],
        "text before fill bytes and the end": JPEG[:-2] + b"a camera's own text\xff\xff" + JPEG[-2:],
        "text in Chinese before the end": JPEG[:-2] + "相机 2019-01-01 über".encode() * 2 + JPEG[-2:],
        "zeros before the end": JPEG[:-2] + bytes(5000) + JPEG[-2:],
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "no range in a baseline scan",
        "zeros before the tables",
        "zeros before the scan",
        "bytes that look like no marker before the scan",
        "fill bytes",
        "text before the end",
        "text before fill bytes and the end",
        "text in Chinese before the end",
        "zeros before the end",
    ],
)
def test_a_warning_is_no_damage(what: str) -> None:
    assert np.array_equal(rgb(whole_with(what)), rgb(JPEG))


@pytest.mark.parametrize("zeros", [100, 2000, 100_000])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_zeros_in_place_of_rows_are_damage(zeros: int, end: bytes) -> None:
    """libjpeg decodes zeros to blocks without a complaint, and counts the rest of them as padding."""
    assert kind_of(JPEG[: len(JPEG) // 2] + bytes(zeros) + end) in (
        Kind.DECODE_CORRUPT,
        Kind.DECODE_TRUNCATED,
    )


def test_picture_data_left_over_is_damage() -> None:
    lost_marker = saved(photo(), "JPEG", restart_marker_rows=1).replace(b"\xff\xd2", b"", 1)
    assert kind_of(lost_marker) is Kind.DECODE_CORRUPT
    more = SCAN + 40  # picture data, twice
    assert (
        kind_of(JPEG[:-2] + JPEG[more : more + 400].replace(b"\xff", b"") + JPEG[-2:]) is Kind.DECODE_CORRUPT
    )


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, saved(photo().convert("CMYK"), "JPEG")])
def test_a_jpeg_without_its_end_is_whole(data: bytes) -> None:
    for cut in (data[:-2], data[:-1], data[:-2] + bytes(600)):
        assert np.array_equal(rgb(cut), rgb(data))


def test_a_jpeg_without_a_scan_is_cut() -> None:
    """Cut between two scans: libjpeg has nothing to complain about, and the picture is blurred or without colours."""
    starts = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", at)]
    assert len(starts) > 5
    for start in starts:
        assert kind_of(PROGRESSIVE[:start]) is Kind.DECODE_TRUNCATED


def test_a_jpeg_whose_thumbnail_is_whole_is_cut() -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(PROGRESSIVE) + 2) + PROGRESSIVE
    data = JPEG[:2] + thumbnail + JPEG[2:]
    assert np.array_equal(rgb(data[:-2]), rgb(JPEG))
    for end in (len(data) - 40, len(thumbnail) + SCAN, len(thumbnail) + SCAN + 30):
        assert kind_of(data[:end]) is Kind.DECODE_TRUNCATED


@pytest.mark.parametrize("cut", [1, 8, 12, 16])
@pytest.mark.parametrize("form", ["RGB", "P", "RGBA"])
def test_a_png_without_its_end_is_whole(cut: int, form: str) -> None:
    data = saved(photo().convert(form), "PNG")
    assert np.array_equal(rgb(data[:-cut]), rgb(data))
    assert np.array_equal(rgb(data[:-12] + bytes(40)), rgb(data))


@pytest.mark.parametrize("form", ["RGB", "P", "1"])
def test_a_png_without_its_last_row_is_cut(form: str) -> None:
    data = saved(photo().convert(form), "PNG")
    end = data.index(b"IDAT") - 4
    head, body = data[:end], data[end + 8 : -16]
    for lost in (40, len(body) // 2, len(body) - 20):
        assert kind_of(head + data[end : -16 - lost]) is Kind.DECODE_TRUNCATED
        assert kind_of(head + png_chunk(b"IDAT", body[:-lost])) is Kind.DECODE_TRUNCATED


@needs_gif
def test_a_gif_without_its_trailer_is_whole() -> None:
    others = [photo().rotate(angle).convert("P") for angle in (90, 180)]
    animated = saved(photo().convert("P"), "GIF", save_all=True, append_images=others)
    assert np.array_equal(rgb(animated), by_pillow(animated))
    for data in (GIF[:-1], GIF[:-2], GIF[:-1] + bytes(9), animated[:-1], animated[:-300]):
        assert np.array_equal(rgb(data), rgb(GIF))
    assert kind_of(GIF[:-3]) is Kind.DECODE_TRUNCATED


@needs_gif
@pytest.mark.parametrize("screen", [(0, 0), (0, 120), (80, 60)])
def test_a_gif_on_a_screen_that_is_too_small(screen: tuple[int, int]) -> None:
    data = GIF[:6] + struct.pack("<HH", *screen) + GIF[10:]
    assert np.array_equal(rgb(data), rgb(GIF))
    assert refusal(data, 160 * 120 - 1).kind is Kind.DECODE_TOO_LARGE


def hidden_default() -> bytes:
    """An APNG whose default picture is not one of its two frames."""
    ends = PNG.index(b"IDAT") - 4
    size = struct.pack(">II", 160, 120)
    out = PNG[:ends] + png_chunk(b"acTL", struct.pack(">II", 2, 0)) + PNG[ends:-12]
    for number, value in ((0, 0), (2, 255)):
        control = struct.pack(">I", number) + size + struct.pack(">IIHHBB", 0, 0, 1, 10, 0, 0)
        frame = zlib.compress((b"\0" + bytes([value]) * 480) * 120)
        out += png_chunk(b"fcTL", control) + png_chunk(b"fdAT", struct.pack(">I", number + 1) + frame)
    return out + PNG[-12:]


def test_the_default_picture_of_a_png_counts(tmp_path: object) -> None:
    data = hidden_default()
    assert np.array_equal(rgb(data), RGB)
    assert np.array_equal(rgb(data[:-1]), RGB)
    assert np.array_equal(by_pillow(data), RGB)


def tiled(side: int, pixels: np.ndarray) -> bytes:
    """A TIFF in uncompressed tiles, RGB."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.zeros((rows * side, columns * side, 3), np.uint8)
    padded[:height, :width] = pixels
    tiles = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2).tobytes()
    count = rows * columns
    lists = 8 + 2 + 12 * 10 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, lists), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(277, 3, 1, 3), (322, 3, 1, side), (323, 3, 1, side), (324, 4, count, lists + 8)]
    tags += [(325, 4, count, lists + 8 + 4 * count)]
    start = lists + 8 + 8 * count
    out = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    out += bytes(4) + struct.pack("<HHHH", 8, 8, 8, 0)
    size = side * side * 3
    out += struct.pack(f"<{count}I", *(start + size * at for at in range(count)))
    return out + struct.pack(f"<{count}I", *[size] * count) + tiles


def test_a_tiff_in_tiles_that_opencv_reads_from_a_file_only() -> None:
    large = np.tile(RGB, (3, 2, 1))
    data = tiled(240, large)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None  # else the way round can go
    assert np.array_equal(rgb(data), large)
    assert kind_of(data[:-1000]) is Kind.DECODE_TRUNCATED


def test_a_tiff_whose_sizes_are_signed() -> None:
    data = tiff(8, RGB.tobytes(), t262=2, t277=3)
    for tag, value in ((256, 160), (257, 120)):
        data = data.replace(
            struct.pack("<HHIHH", tag, 3, 1, value, 0), struct.pack("<HHIi", tag, 9, 1, value)
        )
    assert np.array_equal(by_pillow(data), RGB)
    assert np.array_equal(rgb(data), RGB)


@pytest.mark.parametrize("cut", [1, 4])
def test_a_tiff_without_the_link_to_a_next_picture_is_whole(cut: int) -> None:
    data = saved(photo().convert("1"), "TIFF", compression="group4")  # its directory is at its end
    assert np.array_equal(rgb(data[:-cut]), rgb(data))


@pytest.mark.parametrize("depth", [1, 257])
@pytest.mark.parametrize("grey", [False, True])
def test_unassociated_alpha_is_dropped_from_a_tiff(depth: int, grey: bool) -> None:
    pixels = (
        np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)]).astype("<u2" if depth > 1 else "u1") * depth
    )
    data = tiff(8 if depth == 1 else 16, pixels.tobytes(), t262=2, t277=4, t338=2)
    assert np.array_equal(by_pillow(data), RGB)
    plain = decode(by_cv2(".png", RGB[..., ::-1]), max_pixels=MOST, gray=grey)
    assert np.abs(decode(data, max_pixels=MOST, gray=grey).astype(int) - plain).max() <= 1


@pytest.mark.parametrize("header", [40, 52, 124])
@pytest.mark.parametrize("shifts", [(24, 16, 8), (8, 16, 24), (0, 8, 16), (16, 8, 0)])
def test_bit_fields_of_a_bmp_lie_where_its_masks_say(header: int, shifts: tuple[int, int, int]) -> None:
    upside_down = RGB[::-1].astype("<u4")
    pixels = sum(upside_down[..., at] << shift for at, shift in enumerate(shifts))
    assert np.array_equal(
        rgb(bmp(32, tuple(255 << shift for shift in shifts), pixels.tobytes(), header=header)), RGB
    )


def test_bit_fields_of_other_widths() -> None:
    upside_down = RGB[::-1].astype("<u4")
    wide = (upside_down << 2 | upside_down >> 6) << np.array([20, 10, 0], "<u4")
    assert np.array_equal(rgb(bmp(32, (1023 << 20, 1023 << 10, 1023), wide.sum(2, "<u4").tobytes())), RGB)
    narrow = ((upside_down >> 4) << np.array([0, 4, 8], "<u4")).sum(2).astype("<u2")
    data = bmp(16, (15, 15 << 4, 15 << 8), narrow.tobytes())
    assert np.array_equal(rgb(data), RGB // 16 * 17)
    assert kind_of(data[:-1]) is Kind.DECODE_TRUNCATED
    same = ((upside_down >> [3, 2, 3]) << np.array([11, 5, 0], "<u4")).sum(2).astype("<u2")
    later = bmp(16, (0xF800, 0x7E0, 0x1F), same.tobytes(), header=124)
    assert np.array_equal(rgb(later), by_pillow(later))


def long_orientation(value: int) -> bytes:
    """Big-endian EXIF whose orientation is a LONG, as some programs write it."""
    return b"MM\0*" + struct.pack(">IHHHII", 8, 1, 274, 4, 1, value) + bytes(4)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_a_long(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    plain = saved(photo(), form, **options)
    for value in range(1, 9):
        start = b"Exif\0\0" if form == "JPEG" else b""
        data = saved(photo(), form, exif=start + long_orientation(value), **options)
        assert long_orientation(value) in data
        usual = saved(photo(), form, exif=exif(value), **options)
        assert np.array_equal(rgb(data), rgb(usual))
        assert np.array_equal(rgb(data, orientation="ignore"), rgb(plain))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_is_turned_or_not(bits: int) -> None:
    pixels = RGB if bits == 8 else RGB.astype("<u2") * 257
    for value in range(1, 9):
        data = tiff(bits, pixels.tobytes(), t262=2, t277=3, t274=value)
        usual = saved(photo(), "PNG", exif=exif(value))
        assert np.array_equal(rgb(data, orientation="ignore"), RGB)
        assert np.array_equal(rgb(data), rgb(usual))


def framed(marker: int, bits: int = 8) -> bytes:
    frame = JPEG.index(b"\xff\xc0")
    return (
        JPEG[: frame + 1] + bytes([marker]) + JPEG[frame + 2 : frame + 4] + bytes([bits]) + JPEG[frame + 5 :]
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (framed(0xC1, bits=12), "12 bits"),
        (framed(0xC3), "lossless"),
        (framed(0xC5), "hierarchical"),
        (tiff(16, RGB.tobytes(), t262=2, t277=1, t339=3), "1 sample of 16 bits, floating"),
        (tiff(8, zlib.compress(RGB.tobytes()), t262=2, t277=3, t259=50000), "ompression"),  # zstd
        (tiff(8, zlib.compress(RGB.tobytes()), t262=2, t277=3, t259=34925), "LZMA"),
        (tiff(32, RGB.astype("<f4").tobytes(), t262=2, t277=3, t339=3, t284=2), "planes"),
    ],
)
def test_what_is_only_not_supported_is_not_corrupt(data: bytes, reason: str) -> None:
    error = refusal(data)
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert reason in error.message


def test_a_jpeg_whose_height_comes_later_is_not_supported() -> None:
    frame = JPEG.index(b"\xff\xc0")
    error = refusal(JPEG[: frame + 5] + bytes(2) + JPEG[frame + 7 :])
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert "DNL" in error.message


def test_a_reason_has_nothing_of_opencvs_log() -> None:
    for data in (
        tiff(8, zlib.compress(RGB.tobytes()), t262=2, t277=3, t259=34925),
        tiff(3, RGB.tobytes()),
        PNG[:60] + b"\xff" + PNG[61:],
        b"P6 160 120 0 ",
    ):
        message = refusal(data).message
        for word in ("ERROR", "WARN", "@", ".cpp", "global", "OpenCV(", "imdecode_", "in function"):
            assert word not in message, message


def numbers(values: np.ndarray) -> bytes:
    return b"\n".join(b" ".join(b"%d" % value for value in row) for row in values.reshape(120, -1)) + b"\n"


@pytest.mark.parametrize("white", [15, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_a_pnm_is_as_bright_as_its_highest_value_says(kind: int, white: int) -> None:
    pixels = RGB if kind in (3, 6) else RGB[..., 0]
    values = (pixels.astype(int) * white + 127) // 255
    body = numbers(values) if kind < 4 else values.astype(">u2" if white > 255 else "u1").tobytes()
    data = b"P%d\n# by a camera\n160 120\n%d\n" % (kind, white) + body
    shown = np.broadcast_to(pixels.reshape(120, 160, -1), (120, 160, 3)).astype(int)
    assert np.abs(rgb(data) - shown).max() <= 255 // white / 2 + 1
    assert decode(data, max_pixels=MOST, gray=True).shape == (120, 160)
    assert kind_of(data[:-200]) is Kind.DECODE_TRUNCATED
    assert kind_of(data[:24]) is Kind.DECODE_TRUNCATED
    assert refusal(data, 160 * 120 - 1).kind is Kind.DECODE_TOO_LARGE


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("photometric", [0, 1])
def test_shallow_tiffs(order: str, bits: int, photometric: int) -> None:
    most = 2**bits - 1
    levels = RGB[..., 0] >> 8 - bits
    each = np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :]
    data = tiff(bits, np.packbits(each.reshape(120, -1), axis=1).tobytes(), order=order, t262=photometric)
    grey = (levels if photometric else most - levels) * (255 // most)
    assert np.array_equal(rgb(data), np.dstack([grey] * 3))
    assert np.array_equal(decode(data, max_pixels=MOST, gray=True), grey)
    assert kind_of(data[:-1]) is Kind.DECODE_TRUNCATED


def test_a_shallow_tiff_with_a_hole_is_never_a_partial_picture(capfd: pytest.CaptureFixture[str]) -> None:
    levels = (RGB[..., 0] >> 4)[:, ::2] << 4 | RGB[:, 1::2, 0] >> 4
    whole = zlib.compress(levels.tobytes())
    assert rgb(tiff(4, whole, t259=8)).shape == RGB.shape
    holed = tiff(4, whole[:1000] + bytes(500) + whole[1500:], t259=8)
    assert kind_of(holed) is Kind.DECODE_CORRUPT
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["<f4", "<f8"])
@pytest.mark.parametrize("most", [1, 255])
def test_floating_tiffs(form: str, most: int) -> None:
    shares = RGB.astype(form) / 255 * most
    colour = tiff(8 * int(form[2]), shares.tobytes(), t262=2, t277=3, t339=3)
    grey = tiff(8 * int(form[2]), shares[..., 0].tobytes(), t339=3, t274=3)
    assert np.array_equal(rgb(colour), RGB)
    assert np.array_equal(rgb(grey), np.dstack([RGB[::-1, ::-1, 0]] * 3))
    assert decode(colour, max_pixels=MOST, gray=True).shape == (120, 160)
    shares[0, 0], shares[0, 1] = np.nan, -5
    assert not rgb(tiff(8 * int(form[2]), shares.tobytes(), t262=2, t277=3, t339=3))[0, :2].any()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif() -> None:
    data = saved(photo(), "AVIF", quality=95, subsampling="4:4:4", exif=exif(6))
    assert rgb(data).shape == (160, 120, 3)
    assert np.abs(rgb(data, orientation="ignore").astype(int) - RGB).mean() < 5
    assert decode(data, max_pixels=MOST, gray=True).shape == (160, 120)
    assert refusal(data, 160 * 120 - 1).kind is Kind.DECODE_TOO_LARGE
    assert kind_of(data[:-9]) is Kind.DECODE_TRUNCATED
    middle = len(data) // 2
    assert kind_of(data[:middle] + bytes(2000) + data[middle + 2000 :]) is Kind.DECODE_CORRUPT


def test_heic() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = saved(photo(), "HEIF", quality=95, exif=exif(6))
    assert rgb(data).shape in ((160, 120, 3), (120, 160, 3))
    assert (
        np.abs(rgb(saved(photo(), "HEIF", quality=95)).astype(int) - RGB).mean() < 15
    )  # its colours are halved
    assert refusal(data, 160 * 120 - 1).kind is Kind.DECODE_TOO_LARGE
    assert kind_of(data[:-9]) is Kind.DECODE_TRUNCATED


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert error.kind is Kind.DECODE_UNSUPPORTED
    assert "pip install 'featd[heif]'" in error.message
    from PIL import AvifImagePlugin

    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    assert "without AVIF" in refusal(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(200)).message
