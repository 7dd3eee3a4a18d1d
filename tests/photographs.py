"""Real photographs for tests: those in scikit-image's wheel and, where present, beside the project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import skimage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WHEEL = Path(skimage.__file__).parent / "data"
NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
    "color.png",
    "gravel.png",
    "grass.png",
    "brick.png",
    "coins.png",
    "moon.png",
    "camera.png",
)


def originals() -> dict[str, npt.NDArray[np.uint8]]:
    """Name -> uint8 (H, W, 3), BGR, at most 512 pixels wide."""
    found = {}
    files = [WHEEL / name for name in NAMES] + sorted(SHARED.glob("*.jpg"))
    for file in files:
        if not file.is_file():
            continue
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        assert picture is not None, file
        shrink = min(1.0, 512 / picture.shape[1])
        found[file.stem.replace(" ", "-")] = cv2.resize(
            picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA
        )
    return found


def variants(picture: npt.NDArray[np.uint8], seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Crops of 75 to 100 % of each side, off-centre, for ever."""
    random = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    while True:
        keep = random.uniform(0.75, 1.0)
        h, w = int(height * keep), int(width * keep)
        y, x = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
        yield picture[y : y + h, x : x + w]


def write_many(folder: Path, count: int, different: int = 1000) -> None:
    """`count` files in sub-folders, `different` pictures among them: written once, then linked."""
    first = write_photographs(folder / "0", different)
    for at in range(different, count):
        source = first[at % different]
        new = folder / str(at // different) / source.parent.name / source.name
        new.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, new)


def write_photographs(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs and PNGs in some sub-folders: crops and re-encodings of the originals, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: variants(picture, seed) for seed, (name, picture) in enumerate(originals().items())}
    names = list(sources)
    written = []
    for at in range(count):
        name = names[at % len(names)]
        sub = folder / f"part-{at % 3}"
        sub.mkdir(exist_ok=True)
        suffix = "png" if at % 7 == 3 else "jpg"
        path = sub / f"{name}-{at:05d}.{suffix}"
        options = [cv2.IMWRITE_JPEG_QUALITY, 50 + at % 45] if suffix == "jpg" else []
        assert cv2.imwrite(str(path), next(sources[name]), options)
        written.append(path)
    return written
