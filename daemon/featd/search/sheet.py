"""Contact sheets: in each row a picture, and beside it those that are near to it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from featd.errors import FeatdError, ImageError, reason
from featd.images.decode import decode
from featd.shards import atomic

MOST_ROWS = 60
"""A sheet shows the first rows only."""
MOST_TILES = 12
MOST_PIXELS = 200_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

TILE = (168, 126)
GAP, QUERY_GAP, MARGIN = 14, 26, 32
CAPTION, HEAD = 36, 84
PAPER, TILE_PAPER, INK, FAINT = "#f6f5f2", "#e4e2dc", "#1f2328", "#7a7f87"
ASKED, FOUND = "#2d5fa6", "#b9b5ab"
FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf")
"""Of the system, for text that Pillow's own font has no letters for: the first that is there."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture of a sheet, with two lines of text under it."""

    file: Path
    first: str
    second: str = ""


def check_name(out: Path) -> None:
    """FeatdError where a sheet cannot be written to a file of this name."""
    if out.suffix.lower() not in SUFFIXES:
        raise FeatdError(
            f"{out}: the name of a sheet must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if not out.parent.is_dir() or out.is_dir():
        raise FeatdError(f"{out}: name a file in a folder that is there")


def draw(out: Path, title: str, summary: str, rows: Sequence[tuple[Tile, Sequence[Tile]]]) -> None:
    """Draw a picture and its neighbours in each row, and write the sheet. FeatdError where it cannot be written."""
    rows = [(asked, list(found)[:MOST_TILES]) for asked, found in rows[:MOST_ROWS]]
    columns = 1 + max((len(found) for _, found in rows), default=0)
    height = TILE[1] + CAPTION + GAP
    width = max(2 * MARGIN + columns * (TILE[0] + GAP) + QUERY_GAP, 640)
    image = Image.new("RGB", (width, HEAD + len(rows) * height + MARGIN), PAPER)
    sheet = ImageDraw.Draw(image)
    sheet.text((MARGIN, 20), title, INK, _font(title, 24))
    sheet.text((MARGIN, 54), _cut(sheet, summary, width - 2 * MARGIN, 13), FAINT, _font(summary, 13))
    for at, (asked, found) in enumerate(rows):
        top = HEAD + at * height
        _place(image, sheet, asked, (MARGIN, top), ASKED)
        for column, tile in enumerate(found, start=1):
            _place(image, sheet, tile, (MARGIN + QUERY_GAP + column * (TILE[0] + GAP), top), FOUND)
    made = BytesIO()
    image.save(made, {".jpg": "jpeg", ".jpeg": "jpeg"}.get(out.suffix.lower(), out.suffix[1:].lower()))
    try:
        atomic.write_atomically(out, made.getvalue(), public=True)
    except OSError as error:
        raise FeatdError(f"{out}: cannot write the sheet: {reason(error)}") from error


def _place(
    image: Image.Image, sheet: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], frame: str
) -> None:
    """One picture in its frame, whole, and its text."""
    left, top = at
    box = (left - 3, top - 3, left + TILE[0] + 2, top + TILE[1] + 2)
    sheet.rectangle(box, fill=TILE_PAPER, outline=frame, width=3)
    picture = _thumbnail(tile.file)
    if picture is None:
        sheet.text((left + 10, top + TILE[1] // 2 - 8), "cannot be read", FAINT, _font("", 12))
    else:
        image.paste(picture, (left + (TILE[0] - picture.width) // 2, top + (TILE[1] - picture.height) // 2))
    for line, (text, colour) in enumerate(((tile.first, INK), (tile.second, FAINT))):
        place = (left, top + TILE[1] + 5 + 15 * line)
        sheet.text(place, _cut(sheet, text, TILE[0], 12), colour, _font(text, 12))


def _thumbnail(file: Path) -> Image.Image | None:
    """The picture in the size of a tile; None where it cannot be read."""
    try:
        pixels = decode(file.read_bytes(), max_pixels=MOST_PIXELS)
    except (OSError, ImageError, MemoryError):
        return None
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, 2::-1]))
    picture.thumbnail(TILE, Image.Resampling.LANCZOS)
    return picture


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that has the letters of `text`, if there is one."""
    return _system_font(size) if not text.isascii() else ImageFont.load_default(size)


@cache
def _system_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _cut(sheet: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The end of a text that is too long for its place, which tells more of a path than its beginning."""
    font = _font(text, size)
    if sheet.textlength(text, font) <= width:
        return text
    while len(text) > 1 and sheet.textlength("…" + text, font) > width:
        text = text[1:]
    return "…" + text
