"""Which corrections of what featd reads change the picture of a file: see `Correction`."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection

from featd.errors import ImageError
from featd.images import bmp, exif, png, tiff
from featd.images.decode import EXIF_STARTS
from featd.images.flaws import EndsEarlyError, OutOfOrderError, UnsupportedError
from featd.images.header import Format, probe
from featd.states import Correction

_CHANGES: dict[Correction, tuple[tuple[Format, ...], Callable[[bytes, Format], bool]]] = {
    Correction.TIFF_ALPHA: ((Format.TIFF,), lambda data, _: tiff.directory(data).has_unassociated_alpha),
    Correction.TIFF_ORIENTATION: ((Format.TIFF,), lambda data, _: tiff.directory(data).orientation != 1),
    Correction.BMP_FIELDS: ((Format.BMP,), lambda data, _: bmp.unusual_fields(data) is not None),
    Correction.EXIF_LONG: (
        tuple(EXIF_STARTS),
        lambda data, form: exif.missed_orientation(data, EXIF_STARTS[form](data)) != 1,
    ),
    Correction.PNG_ANIMATION: ((Format.PNG,), lambda data, _: png.default_picture(data) is not data),
}


def change(data: bytes, lacked: Collection[str]) -> bool:
    """Whether one of the corrections `lacked` changes the picture of `data`."""
    return bool(changing(data, lacked))


def changing(data: bytes, among: Collection[str]) -> list[Correction]:
    """Those corrections `among` these that change the picture of `data`. What cannot be told stays as it was."""
    found: list[Correction] = []
    if not among:
        return found
    with contextlib.suppress(
        ImageError, EndsEarlyError, OutOfOrderError, UnsupportedError, struct.error, IndexError
    ):
        form = probe(data).format
        for correction, (forms, changes) in _CHANGES.items():
            if correction in among and form in forms and changes(data, form):
                found.append(correction)
    return found
