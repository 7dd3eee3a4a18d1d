"""The first scan of a folder, and a rescan, against os.scandir and stat alone, on both databases; and their memory.

    python benchmarks/scan.py [--files 1000000] [--database sqlite]

Empty files, a thousand to a folder. Each scan is a process of its own, as featd's ingest is; the walk alone goes
through the same folders by os.scandir and calls stat for each file. All are run in turn; the kernel knows the folders.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import chosen, compared, databases, databases_option, parser, report, scratch, tell

from featd.catalog import connect, migrate
from featd.config import RootConfig
from featd.ingest.scan import scan_root

PER_FOLDER = 1000
GOALS = {"sqlite": 0.4, "postgresql": 0.2}
MOST_MEGABYTES = 150


def make_files(root: Path, count: int) -> None:
    for number in range(count):
        if number % PER_FOLDER == 0:
            folder = root / f"{number // PER_FOLDER // 100:03}" / f"album-{number // PER_FOLDER:06}"
            folder.mkdir(parents=True)
        os.close(os.open(folder / f"IMG_{number:09}.jpg", os.O_CREAT | os.O_WRONLY))


def walk(folder: Path) -> int:
    """How many files there are."""
    count = 0
    below = [os.fspath(folder)]
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    count += 1
    return count


def scan(url: str, root: Path) -> int:
    engine = connect.open_catalog(url)
    try:
        return scan_root(engine, RootConfig(path=root, settle_seconds=0.0)).files
    finally:
        engine.dispose()


def timed(work: Callable[..., int], arguments: tuple[Any, ...], told: Any) -> None:
    began = time.monotonic()
    count = work(*arguments)
    took = time.monotonic() - began
    told.put((count, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def alone(work: Callable[..., int], *arguments: Any) -> tuple[int, float, float]:
    """Files, seconds and megabytes, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.SimpleQueue()
    process = spawn.Process(target=timed, args=(work, arguments, told))
    process.start()
    found: tuple[int, float, float] = told.get()
    process.join()
    return found


def main() -> None:
    made = parser(__doc__)
    databases_option(made)
    made.add_argument("--files", type=int, default=200_000, help="default: 200000")
    options = made.parse_args()
    results = []
    with scratch(options.folder) as folder, databases(folder) as servers:
        root = folder / "images"
        make_files(root, options.files)
        alone(walk, root)
        for kind in chosen(options.database):
            rates: dict[str, list[float]] = {"walk": [], "first": [], "again": []}
            memory = 0.0
            for at in range(options.pairs):
                url = servers.new(kind)
                engine = connect.open_catalog(url)
                migrate.upgrade(engine)
                engine.dispose()
                for name, work, arguments in (
                    ("walk", walk, (root,)),
                    ("first", scan, (url, root)),
                    ("again", scan, (url, root)),
                ):
                    count, took, megabytes = alone(work, *arguments)
                    assert count == options.files, (name, count)
                    rates[name].append(count / took)
                    memory = max(memory, megabytes) if name != "walk" else memory
                tell(f"{kind} {at}: " + ", ".join(f"{name} {rates[name][-1]:,.0f}/s" for name in rates))
            for name, what in (("first", "first scan"), ("again", "rescan")):
                results.append(
                    compared(
                        rates[name],
                        rates["walk"],
                        GOALS[kind],
                        what=f"{what} against os.scandir and stat, files/s",
                        database=kind,
                        megabytes=round(memory),
                        megabytes_goal=MOST_MEGABYTES,
                    )
                )
    report("scan", results, files=options.files)


if __name__ == "__main__":
    main()
