"""Whether a file is one of those whose pixels a correction changed."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from featd.images.corrections import change
from featd.states import Correction
from pictures import bmp, exif, photo, saved, tiff

PIXELS = bytes(range(1, 241)) * 320
FRAMES = [photo(), photo().rotate(90).resize((160, 120)), photo().rotate(180)]


def exif_as_long(data: bytes) -> bytes:
    """The orientation as a LONG in place of a SHORT."""
    at = data.index(b"MM\0*") + data[data.index(b"MM\0*") :].index(struct.pack(">HHI", 274, 3, 1))
    return data[:at] + struct.pack(">HHII", 274, 4, 1, 6) + data[at + 12 :]


CONCERNED = {
    "tiff with alpha": (tiff(8, PIXELS, t262=2, t277=4, t338=2), Correction.TIFF_ALPHA),
    "turned tiff": (tiff(8, PIXELS, t274=6), Correction.TIFF_ORIENTATION),
    "bmp": (bmp(32, (0xFF000000, 0xFF0000, 0xFF00), PIXELS), Correction.BMP_FIELDS),
    "jpeg": (exif_as_long(saved(photo(), "JPEG", exif=exif(6))), Correction.EXIF_LONG),
    "png": (exif_as_long(saved(photo(), "PNG", exif=exif(6))), Correction.EXIF_LONG),
    "webp": (exif_as_long(saved(photo(), "WEBP", exif=exif(6))), Correction.EXIF_LONG),
    "animation": (
        saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:], default_image=True),
        Correction.PNG_ANIMATION,
    ),
}
PLAIN = {
    "tiff": tiff(8, PIXELS),
    "tiff with associated alpha": tiff(8, PIXELS, t262=2, t277=4, t338=1),
    "bmp": bmp(32, (0xFF0000, 0xFF00, 0xFF), PIXELS),
    "bmp with masks of zero": bmp(32, (0, 0, 0), PIXELS),
    "bmp with masks of zero and a later header": bmp(32, (0, 0, 0), PIXELS, header=124),
    "turned jpeg": saved(photo(), "JPEG", exif=exif(6)),
    "png": saved(photo(), "PNG"),
    "webp": saved(photo(), "WEBP"),
    "gif": saved(photo(), "GIF"),
    "text": b"no picture",
    "nothing": b"",
    "cut tiff": tiff(8, b"", t338=2)[:40],
}


@pytest.mark.parametrize("what", CONCERNED)
def test_only_its_own_correction_changes_a_picture(what: str) -> None:
    data, mine = CONCERNED[what]
    assert [one for one in Correction if change(data, [one])] == [mine]
    assert change(data, list(Correction))
    assert not change(data, [])


@pytest.mark.parametrize("what", PLAIN)
def test_other_files_keep_their_vectors(what: str) -> None:
    assert not change(PLAIN[what], list(Correction))


@pytest.mark.parametrize("what", ["bmp", "tiff with alpha", "animation"])
def test_opencv_alone_gives_other_pixels(what: str) -> None:
    """As the first release did. If a later OpenCV reads them as featd does, the correction is needed no more."""
    from featd.images.decode import decode

    data, _ = CONCERNED[what]
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert not np.array_equal(decode(data, max_pixels=10**6), theirs)
