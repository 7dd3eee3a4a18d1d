"""Seconds until a renamed folder is done again, against reading and hashing its files and against the first extraction.

    python benchmarks/renamed.py [--files 20000] [--net gist|caffenet] [--engine onnxruntime|caffe] [--size 64]

A real daemon with one CPU worker. All files differ. A folder with half of them is renamed while featd runs, and one
with the other half while it is stopped. Small files show what featd itself costs.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cv2
import numpy as np

import nets
from featd.catalog import connect, counters
from featd.images.read import content_hash
from featd.states import State
from running import Instance, kill_all, make_instance, wait_for

PER_FOLDER = 1000
MOST_SECONDS = 3600.0


def write_files(root: Path, count: int, size: int) -> None:
    """JPEGs of noise, `size` pixels wide and high, in two folders, `count` in all."""
    dice = np.random.default_rng(1)
    for number in range(count):
        folder = root / f"half-{number % 2}" / f"{number // 2 // PER_FOLDER:03}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = dice.integers(0, 256, (size, size, 3), np.uint8)
        (folder / f"{number:06}.jpg").write_bytes(bytes(cv2.imencode(".jpg", pixels)[1]))


def read_and_hash(folder: Path) -> float:
    """Seconds for all files of a folder, in one process."""
    began = time.monotonic()
    for file in sorted(folder.rglob("*.jpg")):
        content_hash(file.read_bytes())
    return time.monotonic() - began


class Counts:
    """How many images of an instance are in which state."""

    def __init__(self, instance: Instance) -> None:
        self._catalog = connect.open_catalog(instance.settings.catalog.url)

    def of(self, state: State) -> int:
        with connect.reading(self._catalog) as conn:
            return counters.counts(conn)[state]

    def seconds_until(self, done: int, gone: int, act: Callable[[], object]) -> float:
        """From the moment when `act` begins."""
        began = time.monotonic()
        act()
        wait_for(lambda: self.of(State.GONE) == gone and self.of(State.DONE) == done, MOST_SECONDS)
        return time.monotonic() - began

    def close(self) -> None:
        self._catalog.dispose()


def start(instance: Instance) -> subprocess.Popen[str]:
    """A daemon that has loaded its net and scanned its root."""
    log = instance.folder / "stderr"
    log.unlink(missing_ok=True)
    process = instance.start("run")
    wait_for(lambda: log.exists() and "model loaded" in log.read_text(), 240, "a loaded net")
    return process


def measure(instance: Instance, images: Path, count: int) -> tuple[float, float, float, float]:
    """Seconds for all files: first extraction, reading and hashing, renamed while featd runs, and while it is stopped;
    the last two are of half the files each, times two."""
    counts = Counts(instance)
    aside = images.with_name("aside")
    images.rename(aside)
    images.mkdir()
    (images / "notes.txt").touch()
    process = start(instance)
    try:
        first = counts.seconds_until(
            count, 0, lambda: [path.rename(images / path.name) for path in aside.iterdir()]
        )
        hashing = read_and_hash(images)
        running = counts.seconds_until(count, count // 2, lambda: (images / "half-0").rename(images / "a"))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        (images / "half-1").rename(images / "b")
        process = start(instance)
        stopped = counts.seconds_until(count, count, lambda: None)
    finally:
        kill_all(process)
        counts.close()
    return first, hashing, 2 * running, 2 * stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="pixels on each side")
    parser.add_argument("--net", default="gist", choices=["caffenet", "gist"])
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        model: dict[str, object] = {"model__engine": options.engine}
        if options.net == "caffenet":
            (folder / "deploy.prototxt").write_text(nets.caffenet_prototxt())
            nets.random_weights(folder / "deploy.prototxt", folder / "net.caffemodel", seed=1)
            model |= {
                "model__net": str(folder / "deploy.prototxt"),
                "model__weights": str(folder / "net.caffemodel"),
                "model__blobs": ["fc7"],
            }
        count = options.files // 2 * 2
        write_files(folder / "images", count, options.size)
        instance = make_instance(folder / "instance", folder / "images", workers__devices=["cpu"], **model)
        first, hashing, running, stopped = measure(instance, folder / "images", count)
        print(f"{options.net}, {options.engine}, {count:,} files of {options.size} x {options.size} pixels")
        print("what                             seconds    files/s  of hashing  of the first extraction")
        for what, seconds in (
            ("first extraction", first),
            ("reading and hashing", hashing),
            ("renamed while featd runs", running),
            ("renamed while it is stopped", stopped),
        ):
            print(
                f"{what:<30} {seconds:>9.1f} {count / seconds:>10.0f} {seconds / hashing:>11.1f}"
                f" {seconds / first:>24.3f}"
            )


if __name__ == "__main__":
    main()
