"""The table of odd files: what each of them must become."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import cv2
import numpy as np
from PIL import Image

from photographs import originals


@dataclass(frozen=True)
class Expected:
    """state None: never taken into the catalog."""

    state: str | None
    kind: str | None = None


def write_corpus(folder: Path, outside: Path) -> dict[bytes, Expected]:
    """Raw path relative to `folder` -> what it becomes. `outside` becomes a photograph that a link leads to."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = cv2.cvtColor(originals()["astronaut"], cv2.COLOR_BGR2RGB)
    image = Image.fromarray(photo)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    cv2.imwrite(str(folder / "deep.png"), (photo.astype(np.uint16) << 8) | 17)
    image.convert("L").save(folder / "grey with blank.jpg", quality=85)
    frames = [image.resize((200, 160)), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((200, 160))]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=100)
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    alpha.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.resize((300, 200)).save(folder / "rotated.jpg", exif=exif, quality=90)
    image.save(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff\xfe.jpg"), format="JPEG", quality=88)
    image.resize((123, 77)).save(folder / "UPPER.JPG", format="PNG")

    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture\n" * 40)
    image.save(folder / "whole.jpg", quality=90)
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(bomb(12000, 12000))
    (folder / "denied.jpg").write_bytes(whole)
    (folder / "denied.jpg").chmod(0)
    outside.write_bytes(whole)
    (folder / "link.jpg").symlink_to(outside)
    os.mkfifo(folder / "fifo.jpg")
    done = Expected("done")
    return {
        b"cmyk.jpg": done,
        b"deep.png": done,
        b"grey with blank.jpg": done,
        b"animated.gif": done,
        b"alpha.png": done,
        b"rotated.jpg": done,
        b"not-utf8-\xff\xfe.jpg": done,
        b"UPPER.JPG": done,
        b"whole.jpg": done,
        b"empty.jpg": Expected("failed", "decode.corrupt"),
        b"text.jpg": Expected("failed", "decode.unsupported"),
        b"half.jpg": Expected("failed", "decode.truncated"),
        b"bomb.png": Expected("failed", "decode.too_large"),
        b"denied.jpg": Expected("failed", "read.denied"),
        b"link.jpg": Expected(None),
        b"fifo.jpg": Expected(None),
    }


def bomb(width: int, height: int) -> bytes:
    """An all-black RGB PNG, small on disk and large in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + 3 * width)
    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    head = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
