"""JPEGs about which libjpeg complains, or about which it says nothing although something is missing."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image

from featd.errors import ImageError
from featd.images.decode import decode
from featd.images.tiff import directory
from featd.states import Kind
from pictures import photo, saved

MOST = 10_000_000
END = b"\xff\xd9"
JPEG = saved(photo(), "JPEG")
SCAN = JPEG.index(b"\xff\xda")
RESTARTS = saved(photo(), "JPEG", restart_marker_rows=1)  # 8 rows of blocks, 7 markers
PLACES = [at for at in range(RESTARTS.index(b"\xff\xda"), len(RESTARTS)) if RESTARTS[at] == 0xFF]
PLACES = [at for at in PLACES if 0xD0 <= RESTARTS[at + 1] <= 0xD7]
SMALL = photo().resize((64, 48))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
# 24x16 pixels of grey, by cjpeg -arithmetic: no encoder here writes them.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV015{O2nPlV2nYxZ3JMDj7!VE(4GtX@77-XDA0;FrA0i<pD>pADDKse|A}~QQG&wsyK0YNbL`g$"
    "DNH;w`JO9Z53kU!Z02l!Q5di<p00saM5C#9*00;pA002J#{{V4C{{Ro+V)xAg*uaUg>)tc~0Bn45bsQ&q798248+)ho%djl(v_RjZXSw}"
    "V?h8aN;zd4e9f*@;p&V^TSHg`EQA<Z-0&l|eSu#%el`GNo=Mg~v*#"
)


def read(data: bytes, gray: bool = False) -> np.ndarray:
    return decode(data, max_pixels=MOST, gray=gray)


def kind_of(data: bytes) -> Kind:
    with pytest.raises(ImageError) as caught:
        read(data)
    return caught.value.kind


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))[..., ::-1]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_warning(data: bytes, what: str) -> bytes:
    """A JPEG with something before its scan that libjpeg warns of, and then of nothing else."""
    scan = data.index(b"\xff\xda")
    return {
        "junk": data[:scan] + bytes(5) + data[scan:],
        "no range": data[: scan + 11] + bytes(3) + data[scan + 14 :],
        "JFIF": data.replace(b"JFIF\0\1", b"JFIF\0\2"),
        "Adobe": data[:20] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\7") + data[20:],
    }[what]


@pytest.mark.parametrize("what", ["junk", "no range", "JFIF", "Adobe"])
def test_a_warning_hides_no_damage(what: str) -> None:
    """libjpeg prints its first warning only; a harmless one in the header came before that of the missing rows."""
    assert np.array_equal(read(with_warning(JPEG, what)), read(JPEG))
    cut = JPEG[: SCAN + 1500] + JPEG[-2:]
    assert kind_of(with_warning(cut, what)) is Kind.DECODE_TRUNCATED
    lost = RESTARTS[: PLACES[3]] + RESTARTS[PLACES[4] :]
    assert kind_of(with_warning(lost, what)) in (Kind.DECODE_CORRUPT, Kind.DECODE_TRUNCATED)


@pytest.mark.parametrize("text", [b"camera text, one two three four", b"\0" * 300, b"frame 17 "])
def test_text_behind_a_warning_is_no_damage(text: bytes) -> None:
    for whole in (JPEG, saved(photo().convert("L"), "JPEG", quality=85, optimize=True)):
        data = with_warning(whole[:-2] + text + END, "junk")
        assert np.array_equal(read(data), read(whole))


def test_text_behind_two_scans_is_no_damage() -> None:
    data = saved(photo(), "JPEG", progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    table = data.rindex(b"\xff\xc4", 0, second)
    text = b"a camera's own text, frame 17"
    assert np.array_equal(read(data[:table] + text + data[table:-2] + text + data[-2:]), read(data))
    cut = data[:table] + text + data[table : second + 200] + data[-2:]
    assert kind_of(cut) in (Kind.DECODE_CORRUPT, Kind.DECODE_TRUNCATED)


def renumbered(numbers: list[int]) -> bytes:
    data = bytearray(RESTARTS)
    for at, number in zip(PLACES, numbers, strict=True):
        data[at + 1] = 0xD0 + number % 8
    return bytes(data)


@pytest.mark.parametrize("order", ["plus 4", "swapped", "one more cycle", "from 3"])
def test_restart_markers_whose_numbers_are_wrong(order: str) -> None:
    """What libjpeg decodes as if the numbers were right is the picture; where it drops or repeats rows, it is not."""
    right = list(range(len(PLACES)))
    numbers = {
        "plus 4": [number + 4 for number in right],
        "swapped": [right[1], right[5], *right[2:5], right[1], *right[6:]],
        "one more cycle": [*right[:4], 0, *right[5:]],
        "from 3": [number + 3 for number in right],
    }[order]
    data = renumbered(numbers)
    if np.array_equal(by_pillow(data), by_pillow(RESTARTS)):
        assert np.array_equal(read(data), read(RESTARTS))
    else:
        assert kind_of(data) is Kind.DECODE_CORRUPT
    assert order != "plus 4" or np.array_equal(read(data), read(RESTARTS))


@pytest.mark.parametrize("shift", [1, 2, 6, 7])
def test_restart_markers_whose_numbers_ruin_the_picture(shift: int) -> None:
    data = renumbered([number + shift for number in range(len(PLACES))])
    assert not np.array_equal(by_pillow(data), by_pillow(RESTARTS))
    assert kind_of(data) is Kind.DECODE_CORRUPT


@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5, 6])
def test_lost_restart_intervals_are_damage(lost: int) -> None:
    data = RESTARTS[: PLACES[0]] + RESTARTS[PLACES[lost] :]
    assert kind_of(data) in (Kind.DECODE_CORRUPT, Kind.DECODE_TRUNCATED)


def test_an_arithmetic_jpeg_without_its_end() -> None:
    for end in (bytes(2), bytes(1), bytes(200), b"\xff\xff" + END):
        data = ARITHMETIC[:-2] + end
        assert np.array_equal(read(data), by_pillow(data))
        assert np.array_equal(read(data), read(ARITHMETIC))
    for cut in (2, 3, 10, 40):
        assert kind_of(ARITHMETIC[:-cut]) is Kind.DECODE_TRUNCATED
    assert kind_of(ARITHMETIC[:-40] + bytes(600)) in (Kind.DECODE_CORRUPT, Kind.DECODE_TRUNCATED)


@pytest.mark.parametrize(
    "whole",
    [
        saved(SMALL, "JPEG", quality=95, optimize=True),
        saved(NOISE, "JPEG", quality=75, optimize=True),
        saved(NOISE, "JPEG", quality=95, progressive=True),
    ],
)
def test_an_end_of_zeros_is_no_picture(whole: bytes) -> None:
    """Zeros in place of the last rows and the end may be just as many as libjpeg needs, and it says nothing."""
    for zeros in range(33, 600, 7):
        assert kind_of(whole[:-zeros] + bytes(zeros)) in (Kind.DECODE_CORRUPT, Kind.DECODE_TRUNCATED)
    padded = whole[:-2] + bytes(600)
    assert np.array_equal(read(padded), read(whole))


def in_tiff(**options: object) -> bytes:
    return saved(photo(), "TIFF", compression="jpeg", **options)


@pytest.mark.parametrize("rows", [16, 120])
def test_strips_of_jpeg_without_their_end(rows: int) -> None:
    whole = in_tiff(tiffinfo={278: rows})
    found = directory(whole)
    ends = [start + count for start, count in zip(found.values[273], found.values[279], strict=True)]
    assert len(ends) == -(-120 // rows)
    zeroed, damaged = bytearray(whole), bytearray(whole)
    for end in ends:
        assert whole[end - 2 : end] == END
        zeroed[end - 2 : end] = bytes(2)
    assert np.array_equal(read(bytes(zeroed)), by_pillow(bytes(zeroed)))
    assert np.array_equal(read(bytes(zeroed)), read(whole))
    damaged[ends[0] - 60 : ends[0]] = bytes(60)
    assert kind_of(bytes(damaged)) is Kind.DECODE_TRUNCATED


def lossless(pixels: np.ndarray) -> bytes:
    """A lossless JPEG (ITU T.81, annex H) of uint8 (H, W, C): predictor 1, and one code of 4 bits for each size."""
    height, width, channels = pixels.shape
    names = b"\1" if channels == 1 else b"RGB"
    parts = [b"\xff\xd8", segment(0xC4, bytes((0, 0, 0, 0, 9, *bytes(12), *range(9))))]
    frame = b"".join(bytes((name, 0x11, 0)) for name in names)
    parts.append(segment(0xC3, struct.pack(">BHHB", 8, height, width, channels) + frame))
    scan = b"".join(bytes((name, 0)) for name in names)
    parts.append(segment(0xDA, bytes((channels,)) + scan + bytes((1, 0, 0))))
    bits = ""
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                before = pixels[y, x - 1, c] if x else pixels[y - 1, 0, c] if y else 128
                difference = int(pixels[y, x, c]) - int(before)
                size = abs(difference).bit_length()
                rest = difference if difference > 0 else difference + (1 << size) - 1
                bits += f"{size:04b}" + (f"{rest:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(parts) + body + END


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lossless_jpeg(channels: int) -> None:
    pixels = np.asarray(photo().resize((24, 16)))[..., :channels]
    data = lossless(pixels)
    shown = np.dstack([pixels] * (3 // channels))
    assert np.array_equal(by_pillow(data)[..., ::-1], shown)
    assert np.array_equal(read(data)[..., ::-1], shown)
    assert read(data, gray=True).shape == (16, 24)
    assert kind_of(data[:-80] + END) is Kind.DECODE_TRUNCATED


def frame_of(marker: int, body: bytes) -> bytes:
    frame = JPEG.index(b"\xff\xc0")
    return JPEG[:frame] + segment(marker, body) + JPEG[frame + 2 + JPEG[frame + 3] :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame_of(0xF7, b"\x08\0\x78\0\xa0\1\1\x11\0"), "JPEG-LS"),
        (frame_of(0xDE, b"\x08\0\x78\0\xa0\1\1\x11\0"), "hierarchical"),
        (frame_of(0xC0, b"\x08\0\x78\0\xa0\2\1\x11\0\2\x11\0"), "2 components"),
        (frame_of(0xC0, b"\x08\0\x78\0\xa0\3\1\x31\0\2\x21\0\3\x11\0"), "fractional"),
    ],
)
def test_kinds_that_no_decoder_reads(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read(data)
    assert caught.value.kind is Kind.DECODE_UNSUPPORTED
