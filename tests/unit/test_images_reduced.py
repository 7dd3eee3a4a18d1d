"""Large JPEGs that are decoded at a fraction of their size: never below what is asked for, and never in part."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from featd.errors import ImageError
from featd.images.decode import decode
from featd.states import Kind
from pictures import exif, photo, saved

MOST = 10_000_000
WIDE = photo().resize((1003, 750), Image.Resampling.BICUBIC)
JPEGS = {
    "plain": saved(WIDE, "JPEG"),
    "progressive": saved(WIDE, "JPEG", progressive=True),
    "restarts": saved(WIDE, "JPEG", restart_marker_rows=1),
    "grey": saved(WIDE.convert("L"), "JPEG"),
    "cmyk": saved(WIDE.convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize(
    ("shortest", "shape"),
    [
        (1, (94, 126)),
        (94, (94, 126)),
        (95, (188, 251)),
        (188, (188, 251)),
        (189, (375, 502)),
        (375, (375, 502)),
        (376, (750, 1003)),
        (5000, (750, 1003)),
    ],
)
@pytest.mark.parametrize("name", JPEGS)
def test_the_smallest_size_that_has_enough_pixels(name: str, shortest: int, shape: tuple[int, int]) -> None:
    whole = decode(JPEGS[name], max_pixels=MOST)
    reduced = decode(JPEGS[name], max_pixels=MOST, shortest=shortest)
    assert reduced.shape == (*shape, 3)
    like = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - like).mean() < 8  # an eighth is the mean of each block
    grey = decode(JPEGS[name], max_pixels=MOST, gray=True, shortest=shortest)
    assert grey.shape == shape


def test_it_is_turned_as_the_whole_picture_is() -> None:
    data = saved(WIDE, "JPEG", exif=exif(6))
    upright = decode(data, max_pixels=MOST, shortest=100)
    stored = decode(data, max_pixels=MOST, orientation="ignore", shortest=100)
    assert stored.shape == (188, 251, 3)
    assert np.array_equal(upright, cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_stay_as_they_are(form: str) -> None:
    data = saved(WIDE, form)
    assert np.array_equal(
        decode(data, max_pixels=MOST, shortest=50, alpha=True), decode(data, max_pixels=MOST, alpha=True)
    )


@pytest.mark.parametrize("name", JPEGS)
def test_a_damaged_one_is_never_a_partial_picture(name: str) -> None:
    data = JPEGS[name]
    half = len(data) // 2
    for damaged in (
        data[:half],
        data[:half] + b"\xff\xd9",
        data[:half] + bytes(1024) + data[half + 1024 :],
        data[:half] + data[half + 1024 :],
    ):
        with pytest.raises(ImageError) as caught:
            decode(damaged, max_pixels=MOST, shortest=50)
        assert caught.value.kind in (Kind.DECODE_TRUNCATED, Kind.DECODE_CORRUPT)


def test_the_limit_is_that_of_the_whole_picture() -> None:
    with pytest.raises(ImageError, match="1003x750 pixels exceed"):
        decode(JPEGS["plain"], max_pixels=100_000, shortest=50)
