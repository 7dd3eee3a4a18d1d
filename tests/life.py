"""What happens to a folder of images: files come, change, move, break and go."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from featd.images.read import content_hash
from photographs import originals, variants
from running import Instance, make_instance

GOOD_DEEDS = ("add", "add", "add", "replace", "touch", "rename", "move_folder", "delete", "slow")
"""Those that leave every picture whole."""
DEEDS = (*GOOD_DEEDS, "break_it")


class Life:
    """What happens to a folder of images. Every picture ever written is different from all others."""

    def __init__(self, folder: Path, dice: random.Random, deeds: Sequence[str] = DEEDS) -> None:
        self.folder = folder
        self.kinds = deeds
        self.dice = dice
        self.serial = 0
        self.broken: set[Path] = set()
        self.deeds: Counter[str] = Counter()
        self.pictures = [variants(picture, seed) for seed, picture in enumerate(originals().values())]
        for _ in range(20):
            self.add()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.jpg") if path.is_file())

    def some(self) -> Path:
        return self.dice.choice(self.files())

    def picture(self) -> bytes:
        self.serial += 1
        pixels = next(self.dice.choice(self.pictures)).copy()
        cv2.putText(pixels, str(self.serial), (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (0, 0, 255), 3)
        return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])

    def deed(self) -> None:
        """One thing that happens."""
        kind = self.dice.choice(self.kinds if len(self.files()) > 10 else ("add",))
        getattr(self, kind)()
        self.deeds[kind] += 1

    def add(self, folder: str = "") -> None:
        target = self.folder / (folder or f"part-{self.dice.randrange(5)}") / f"{self.serial}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.picture())

    def slow(self) -> None:
        data = self.picture()
        with (self.folder / f"slow-{self.serial}.jpg").open("wb") as file:
            for part in np.array_split(np.frombuffer(data, np.uint8), 4):
                file.write(part.tobytes())
                file.flush()
                time.sleep(0.05)  # it is the slow writer that is tested

    def replace(self) -> None:
        target = self.some()
        part = target.with_suffix(".part")
        part.write_bytes(self.picture())
        part.rename(target)
        self.broken.discard(target)

    def touch(self) -> None:
        os.utime(self.some())

    def rename(self) -> None:
        old = self.some()
        new = old.with_name(f"renamed-{self.serial}.jpg")
        self.serial += 1
        old.rename(new)
        self._moved(old, new)

    def move_folder(self) -> None:
        old = self.folder / f"part-{self.dice.randrange(5)}"
        if old.is_dir():
            new = self.folder / f"moved-{self.serial}"
            self.serial += 1
            old.rename(new)
            for path in list(self.broken):
                if path.is_relative_to(old):
                    self._moved(path, new / path.relative_to(old))

    def delete(self) -> None:
        victim = self.some()
        victim.unlink()
        self.broken.discard(victim)

    def break_it(self) -> None:
        victim = self.some()
        data = victim.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
        self.broken.add(victim)

    def _moved(self, old: Path, new: Path) -> None:
        if old in self.broken:
            self.broken.discard(old)
            self.broken.add(new)


def instance_for(life: Life, folder: Path, **keys: Any) -> Instance:
    """Two workers that seal often, and a root that is scanned often. `keys` as in make_instance."""
    return make_instance(
        folder,
        life.folder,
        workers__devices=["cpu", "cpu"],
        workers__batch=4,
        retry__max_crashes=50,
        store__shard_rows=16,
        **keys,
        extra="rescan_seconds = 5.0",
    )


def agrees(instance: Instance, life: Life) -> bool:
    """Every file stands in the catalog as it is on disk, and every other row is gone."""
    rows = {row.path: row for row in instance.rows()}
    files = {str(path.relative_to(life.folder)): path for path in life.files()}
    for name, row in rows.items():
        if name not in files and row.state != "gone":
            return False
    for name, path in files.items():
        if name not in rows:
            return False
        row = rows[name]
        if path in life.broken:
            if (row.state, row.error_kind) != ("failed", "decode.truncated"):
                return False
        elif row.state != "done" or row.content != content_hash(path.read_bytes()):
            return False
    return True
