"""Makes the demo's pictures: photographs that come with scikit-image, each cropped and re-encoded in some ways.

python script/demo_pictures.py FOLDER [FOLDER_WITH_MORE_PHOTOGRAPHS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageEnhance

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
LONGEST = 640


def crop(left: float, top: float, share: float) -> Callable[[Image.Image], Image.Image]:
    """Cut out `share` of width and height, beginning at `left` and `top` of what is left over."""

    def cut(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        x, y = round(width * (1 - share) * left), round(height * (1 - share) * top)
        return picture.crop((x, y, x + round(width * share), y + round(height * share)))

    return cut


def half(picture: Image.Image) -> Image.Image:
    """Half the size."""
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def brighter(picture: Image.Image) -> Image.Image:
    """As an eager program would improve it."""
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.25)).enhance(0.9)


VARIANTS: dict[str, tuple[Callable[[Image.Image], Image.Image], dict[str, int]]] = {
    "original.png": (lambda picture: picture, {}),
    "poor.jpg": (lambda picture: picture, {"quality": 20}),
    "small.webp": (half, {"quality": 70}),
    "crop-left.jpg": (crop(0.0, 0.3, 0.9), {"quality": 90}),
    "crop-right.jpg": (crop(1.0, 0.7, 0.9), {"quality": 90}),
    "brighter.jpg": (brighter, {"quality": 85}),
}


def photographs(more: Path | None) -> Iterator[Path]:
    """What scikit-image's wheel holds, without importing it; then the pictures of the folder `more`."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        sys.exit("demo_pictures: scikit-image is not installed here")
    for name in PHOTOGRAPHS:
        path = Path(spec.origin).parent / "data" / name
        if path.exists():
            yield path
    if more is not None and more.is_dir():
        # "cat gray" is a grey copy of "cat": no photograph of its own.
        yield from sorted(path for path in more.glob("*.jpg") if not path.stem.endswith(" gray"))


def main(folder: Path, more: Path | None) -> None:
    """Write every variant that is not there yet: pictures that stay the same are not extracted again."""
    photos = list(photographs(more))
    made = 0
    for photo in photos:
        place = folder / photo.stem
        place.mkdir(parents=True, exist_ok=True)
        missing = [name for name in VARIANTS if not (place / name).exists()]
        if not missing:
            continue
        with Image.open(photo) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((LONGEST, LONGEST))
        for name in missing:
            change, options = VARIANTS[name]
            unfinished = place / f".{name}"  # featd takes no dot files
            change(picture).save(unfinished, format=_FORMATS[Path(name).suffix], **options)
            unfinished.rename(place / name)
            made += 1
    print(f"{len(photos) * len(VARIANTS)} pictures of {len(photos)} photographs, {made} of them new")


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
