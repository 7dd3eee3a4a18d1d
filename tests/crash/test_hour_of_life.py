"""An hour of life in short: files come, change, move, break and go while workers are killed. In the end catalog,
store and disk agree."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from featd.images.read import content_hash
from photographs import originals, variants
from running import Instance, check_promise, kill_all, make_instance, wait_for


class Life:
    """What happens to a folder of images. Every picture ever written is different from all others."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder = folder
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
        kinds = (
            "add",
            "add",
            "add",
            "replace",
            "touch",
            "rename",
            "move_folder",
            "delete",
            "break_it",
            "slow",
        )
        kind = self.dice.choice(kinds if len(self.files()) > 10 else ("add",))
        getattr(self, kind)()
        self.deeds[kind] += 1

    def add(self) -> None:
        target = self.folder / f"part-{self.dice.randrange(5)}" / f"{self.serial}.jpg"
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


def kill_a_worker(instance: Instance, dice: random.Random) -> None:
    workers = instance.live_workers()
    if workers:
        try:
            os.kill(dice.choice(workers)["pid"], dice.choice([signal.SIGKILL, signal.SIGSEGV]))
        except ProcessLookupError:
            return


LONG = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("seed", "seconds"), [(1, 25.0), *(pytest.param(seed, 600.0, marks=LONG) for seed in (2, 3))]
)
def test_an_hour_of_life(tmp_path: Path, seed: int, seconds: float) -> None:
    dice = random.Random(seed)
    life = Life(tmp_path / "images", dice)
    instance = make_instance(
        tmp_path / "instance",
        life.folder,
        workers__devices=["cpu", "cpu"],
        workers__batch=4,
        retry__max_crashes=50,
        store__shard_rows=16,
        extra="rescan_seconds = 5.0",
    )
    process = instance.start("run")
    try:
        wait_for(instance.live_workers, 90, "a worker")
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 5
        while time.monotonic() < end:
            life.deed()
            if time.monotonic() > next_kill:
                kill_a_worker(instance, dice)
                next_kill = time.monotonic() + dice.uniform(4, 8)
            time.sleep(dice.uniform(0.0, 0.06))  # life has its own pace
        wait_for(lambda: agrees(instance, life), 120, "agreement of catalog and disk")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    print(dict(life.deeds))
    check_promise(instance)
    check_no_vector_twice(instance)


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


def check_no_vector_twice(instance: Instance) -> None:
    seen: Counter[tuple[bytes, bytes]] = Counter()
    for shard in (instance.settings.store.path / "shards").rglob("*.h5"):
        with h5py.File(shard) as file:
            seen.update(zip(file["names"][:], file["content"][:], strict=True))
    assert not [entry for entry, count in seen.items() if count > 1], "a vector was made twice"
