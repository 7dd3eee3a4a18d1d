"""Seconds from the moment a file is complete until it is done: featd idle, and under a backlog.

    python benchmarks/arrivals.py [--rounds 5] [--backlog 30000] [--shard-seconds 5]

A real daemon with one CPU worker and the gist net, settle_seconds = 1. Files arrive in every way that people
make them arrive, one after another. Promised are 2 s when featd is idle; under a backlog `shard_seconds`, for a
shard in hand is filled until then, the time of the batches that are on their way, and that of the sealing.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, schema
from photographs import write_photographs
from running import Instance, kill_all, make_instance, wait_for

IDLE_SECONDS = 2.0
BATCH = 32
FOLDER_FILES = 5
DIFFERENT = 500
WRITE_SECONDS = 3.0


@dataclass(frozen=True)
class Took:
    """Seconds from the moment a file is complete."""

    row: float
    done: float


class Arrivals:
    """Ways for files to come to `root`, each with pictures of its own, and what the catalog says of them."""

    def __init__(self, instance: Instance, root: Path, pictures: list[Path]) -> None:
        self.root = root
        self._pictures = pictures
        self._catalog = connect.open_catalog(instance.settings.catalog.url)
        self._serial = 0
        self._dice = random.Random(1)

    def close(self) -> None:
        self._catalog.dispose()

    def fresh(self, where: str) -> Path:
        """A new picture on the same disk, outside the root, and old."""
        source = self._pictures.pop()
        target = self.root.parent / "outside" / where
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        os.utime(target, (1e9, 1e9))
        return target

    def name(self) -> str:
        self._serial += 1
        return f"arrived-{self._serial}.jpg"

    def copied(self) -> list[str]:
        name = self.name()
        shutil.copyfile(self.fresh(name), self.root / name)
        return [name]

    def moved_in(self) -> list[str]:
        name = self.name()
        self.fresh(name).rename(self.root / name)
        return [name]

    def hard_linked(self) -> list[str]:
        name = self.name()
        os.link(self.fresh(name), self.root / name)
        return [name]

    def written_slowly(self) -> list[str]:
        name = self.name()
        data = self.fresh(name).read_bytes()
        with (self.root / name).open("wb", buffering=0) as file:
            for part in range(10):
                file.write(data[len(data) * part // 10 : len(data) * (part + 1) // 10])
                time.sleep(WRITE_SECONDS / 10)
        return [name]

    def a_moved_in_folder(self) -> list[str]:
        folder = self.name().removesuffix(".jpg")
        names = [f"{folder}/deep/{number}.jpg" for number in range(FOLDER_FILES)]
        for name in names:
            self.fresh(name)
        (self.root.parent / "outside" / folder).rename(self.root / folder)
        return names

    def seconds(self, way: Callable[[], list[str]], phase_seconds: float) -> Took:
        """By the rows' not_before and updated_at; of several files the last counts.

        Begins at any moment of `phase_seconds`: else each file would meet a shard that was just begun.
        """
        time.sleep(self._dice.uniform(0.0, phase_seconds))
        names = way()
        complete = clock.utcnow()
        columns = (schema.images.c.not_before, schema.images.c.updated_at)
        rows = sa.select(*columns).where(schema.images.c.path.in_(names), schema.images.c.state == "done")

        def done() -> list[tuple[float, float]] | None:
            with connect.reading(self._catalog) as conn:
                moments = conn.execute(rows).all()
            took = [tuple((moment - complete).total_seconds() for moment in row) for row in moments]
            return took if len(took) == len(names) else None  # type: ignore[return-value]

        took = wait_for(done, 120, f"{names} done")
        return Took(max(row for row, _ in took), max(done for _, done in took))


WAYS = {
    "copied": Arrivals.copied,
    "moved in": Arrivals.moved_in,
    "hard-linked": Arrivals.hard_linked,
    f"written over {WRITE_SECONDS:g} s": Arrivals.written_slowly,
    f"a moved-in folder of {FOLDER_FILES}": Arrivals.a_moved_in_folder,
}


def make_backlog(root: Path, count: int) -> None:
    """`count` files; after the first some hundred, links to them: to featd each is an image of its own."""
    files = write_photographs(root, min(count, DIFFERENT))
    for number in range(len(files), count):
        link = root / f"links-{number % 100}" / f"{number}{files[number % len(files)].suffix}"
        link.parent.mkdir(exist_ok=True)
        os.link(files[number % len(files)], link)


def measure(
    instance: Instance, root: Path, pictures: list[Path], rounds: int, backlog: int
) -> dict[str, list[Took]]:
    """Way -> its seconds, round by round. `backlog`: so many images are pending before, and must last."""
    process = instance.start("run")
    arrivals = Arrivals(instance, root, pictures)
    try:
        if backlog:
            wait_for(lambda: scanned_and_at_work(instance), 240, "a backlog that is worked off")
        else:
            wait_for(
                lambda: settled(instance) and instance.status()["ingest"]["watching"] == 1,
                120,
                "an idle daemon",
            )
        phase = instance.settings.store.shard_seconds if backlog else 0.0
        took = {
            way: [arrivals.seconds(functools.partial(act, arrivals), phase) for _ in range(rounds)]
            for way, act in WAYS.items()
        }
        if backlog:
            left = instance.status()
            print(
                f"    {left['images']['pending']} of the backlog were left, {left['rate']['images_per_second']}/s"
            )
            if settled(instance):
                sys.exit("the backlog did not last: make it larger with --backlog")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        return took
    finally:
        arrivals.close()
        kill_all(process)


def scanned_and_at_work(instance: Instance) -> bool:
    status = instance.status()
    return status["images"]["done"] > 0 and status["ingest"]["last_scan_at"] is not None


def settled(instance: Instance) -> bool:
    images = instance.status()["images"]
    return bool(images["done"] > 0 and images["pending"] == images["claimed"] == 0)


def table(took: dict[str, list[Took]], promised: float) -> None:
    print(f"    {'':<24} a row: median   worst   done: median   worst   worst / {promised:g} s")
    for way, times in took.items():
        rows, done = [took.row for took in times], [took.done for took in times]
        print(
            f"    {way:<24} {statistics.median(rows):>11.2f} s {max(rows):>5.2f} s"
            f" {statistics.median(done):>12.2f} s {max(done):>5.2f} s {max(done) / promised:>13.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backlog", type=int, default=30_000)
    parser.add_argument("--shard-seconds", type=float, default=5.0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        needed = 2 * options.rounds * (len(WAYS) - 1 + FOLDER_FILES)
        pictures = write_photographs(folder / "pictures", needed)
        for title, backlog, promised in (
            ("idle", 0, IDLE_SECONDS),
            (
                f"under a backlog, shard_seconds = {options.shard_seconds:g}",
                options.backlog,
                options.shard_seconds,
            ),
        ):
            place = folder / ("busy" if backlog else "idle")
            root = place / "images"
            make_backlog(root, backlog or 3)
            instance = make_instance(
                place / "instance",
                root,
                workers__devices=["cpu"],
                workers__batch=BATCH,
                store__shard_seconds=options.shard_seconds,
            )
            text = instance.config.read_text()
            instance.config.write_text(text.replace("settle_seconds = 0.0", "settle_seconds = 1.0"))
            print(title, flush=True)
            table(measure(instance, root, pictures, options.rounds, backlog), promised)


if __name__ == "__main__":
    main()
