"""Draws a contact sheet: in each row a picture of the demo and the five whose vectors are nearest to its own.

    python script/demo_contact_sheet.py VECTORS PICTURES SHEET.png

VECTORS is what `featd export` wrote: features.npy and names.txt. The pictures stand in one folder for each
photograph, so that a neighbour from the same folder is right, and framed green.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

QUERY = "crop-left.jpg"
NEIGHBOURS = 5
TILE = (168, 126)
GAP = 14
CAPTION = 20
HEAD = 84
MARGIN = 32
QUERY_GAP = 26
PAPER, INK, FAINT = "#f6f5f2", "#1f2328", "#7a7f87"
RIGHT, WRONG, ASKED = "#3f9b5f", "#d1453b", "#2d5fa6"


def main(vectors: Path, pictures: Path, sheet: Path) -> None:
    """Find the neighbours by Euclidean distance over all vectors at once, and draw."""
    features = np.load(vectors / "features.npy").astype(np.float64)
    names = (vectors / "names.txt").read_text(encoding="utf-8").splitlines()
    squared = (features**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * features @ features.T, 0))
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)
    photo = np.array([name.partition("/")[0] for name in names])
    right = photo[order[:, :NEIGHBOURS]] == photo[:, None]
    queries = [at for at, name in enumerate(names) if name.endswith(f"/{QUERY}")]

    row_height = TILE[1] + CAPTION + GAP
    width = 2 * MARGIN + (NEIGHBOURS + 1) * TILE[0] + NEIGHBOURS * GAP + QUERY_GAP
    image = Image.new("RGB", (width, HEAD + len(queries) * row_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 22), "featd: nearest neighbours", INK, ImageFont.load_default(24))
    summary = (
        f"{len(names)} pictures, {features.shape[1]} numbers each. Left: a picture. Right: the {NEIGHBOURS} nearest"
        f" to it, with their distance. Green: of the same photograph ({right.mean():.1%} over all pictures)"
    )
    draw.text((MARGIN, 54), summary, FAINT, ImageFont.load_default(13))
    for row, query in enumerate(queries):
        top = HEAD + row * row_height
        tile(
            image,
            draw,
            pictures / names[query],
            (MARGIN, top),
            ASKED,
            f"{photo[query]}   {Path(names[query]).stem}",
        )
        for column, at in enumerate(order[query, :NEIGHBOURS]):
            left = MARGIN + QUERY_GAP + (column + 1) * (TILE[0] + GAP)
            same = photo[at] == photo[query]
            label = Path(names[at]).stem if same else names[at].replace("/", " ")
            caption = f"{distances[query, at]:.3f}   {label}"
            tile(image, draw, pictures / names[at], (left, top), RIGHT if same else WRONG, caption)
    image.save(sheet, optimize=True)
    print(f"{right.mean():.1%} of the {NEIGHBOURS} nearest neighbours are of the same photograph")
    print(f"look at {sheet}")


def tile(
    image: Image.Image, draw: ImageDraw.ImageDraw, path: Path, at: tuple[int, int], frame: str, caption: str
) -> None:
    """One picture in its frame, whole, with a line of text under it."""
    left, top = at
    draw.rectangle(
        (left - 3, top - 3, left + TILE[0] + 2, top + TILE[1] + 2), fill="#e4e2dc", outline=frame, width=3
    )
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(TILE, Image.Resampling.LANCZOS)
    image.paste(picture, (left + (TILE[0] - picture.width) // 2, top + (TILE[1] - picture.height) // 2))
    font = ImageFont.load_default(12)
    while draw.textlength(caption, font) > TILE[0] and len(caption) > 4:
        caption = caption[:-2].rstrip("…") + "…"
    draw.text((left, top + TILE[1] + 5), caption, INK, font)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
