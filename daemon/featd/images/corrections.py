"""Whether a correction of what featd reads changes the picture of a file: see `Correction`."""

from __future__ import annotations

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
    """Whether one of the corrections `lacked` changes the picture of `data`. What cannot be told stays as it was."""
    if not lacked:
        return False
    try:
        form = probe(data).format
        return any(
            form in forms and changes(data, form)
            for correction, (forms, changes) in _CHANGES.items()
            if correction in lacked
        )
    except (ImageError, EndsEarlyError, OutOfOrderError, UnsupportedError, struct.error, IndexError):
        return False
