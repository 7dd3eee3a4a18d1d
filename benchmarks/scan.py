"""The first scan of a folder, and a rescan, against os.scandir and stat alone, on both databases; and their memory.

    python benchmarks/scan.py [--files 1000000] [--database sqlite]

Empty files, a thousand to a folder. Each scan is a process of its own, as featd's ingest is; the walk alone goes
through the same folders by os.scandir and calls stat for each file. The floor of a first scan is that walk and then the
same INSERT by the database's driver alone. All are run in turn; the kernel knows the folders. Beside the time that
passes, the processor time of the process is measured, which says more where other processes are busy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from measuring import Databases, chosen, compared, databases, databases_option, parser, report, scratch, tell

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


def walk(folder: Path, tell: Callable[[str, os.stat_result], object] = lambda path, found: None) -> int:
    """How many files there are."""
    count = 0
    below = [os.fspath(folder)]
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    tell(entry.path, entry.stat(follow_symlinks=False))
                    count += 1
    return count


INSERT = """
    INSERT INTO images (root, path, size, mtime_ns, ctime_ns, version, state, priority, not_before, suspect, errors,
    crashes, kills, updated_at) SELECT '/', {fields}, 1, 'pending', 0, CURRENT_TIMESTAMP, {false}, 0, 0, 0,
    CURRENT_TIMESTAMP FROM {each} WHERE true ON CONFLICT DO NOTHING
"""
DRIVERS = {
    "sqlite": INSERT.format(
        fields="value->>0, value->>1, value->>2, value->>3", false=0, each="json_each(?)"
    ),
    "postgresql": INSERT.format(
        fields="value->>0, (value->>1)::bigint, (value->>2)::bigint, (value->>3)::bigint",
        false="false",
        each="jsonb_array_elements(%s::jsonb)",
    ),
}


def floor(url: str, root: Path) -> int:
    """A walk, and the rows of its files by the driver alone, 5,000 in one statement and transaction."""
    rows: list[tuple[str, int, int, int]] = []
    count = walk(
        root,
        lambda path, found: rows.append((path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)),
    )
    parts = (json.dumps(rows[at : at + 5000]) for at in range(0, count, 5000))
    if url.startswith("sqlite"):
        database = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536"):
            database.execute(f"PRAGMA {pragma}")
        for part in parts:
            database.execute(DRIVERS["sqlite"], (part,))
        database.close()
    else:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True, prepare_threshold=None) as server:
            for part in parts:
                server.execute(DRIVERS["postgresql"].encode(), (part,))
    return count


def scan(url: str, root: Path) -> int:
    engine = connect.open_catalog(url)
    try:
        return scan_root(engine, RootConfig(path=root, settle_seconds=0.0)).files
    finally:
        engine.dispose()


def timed(work: Callable[..., int], arguments: tuple[Any, ...], told: Any) -> None:
    began, busy = time.monotonic(), time.process_time()
    count = work(*arguments)
    took, busy = time.monotonic() - began, time.process_time() - busy
    told.put((count, took, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def alone(work: Callable[..., int], *arguments: Any) -> tuple[int, float, float, float]:
    """Files, seconds, seconds of a processor, and megabytes, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.SimpleQueue()
    process = spawn.Process(target=timed, args=(work, arguments, told))
    process.start()
    found: tuple[int, float, float, float] = told.get()
    process.join()
    return found


def new_catalog(servers: Databases, kind: str) -> str:
    url = servers.new(kind)
    engine = connect.open_catalog(url)
    migrate.upgrade(engine)
    engine.dispose()
    return url


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
            rates: dict[str, list[float]] = {"walk": [], "floor": [], "first": [], "again": []}
            per_processor: dict[str, list[float]] = {name: [] for name in rates}
            memory = 0.0
            for at in range(options.pairs):
                url, other = new_catalog(servers, kind), new_catalog(servers, kind)
                for name, work, arguments in (
                    ("walk", walk, (root,)),
                    ("floor", floor, (other, root)),
                    ("first", scan, (url, root)),
                    ("again", scan, (url, root)),
                ):
                    count, took, busy, megabytes = alone(work, *arguments)
                    assert count == options.files, (name, count)
                    rates[name].append(count / took)
                    per_processor[name].append(count / busy)
                    memory = max(memory, megabytes) if name in ("first", "again") else memory
                tell(
                    f"{kind} {at}: "
                    + ", ".join(
                        f"{name} {rates[name][-1]:,.0f}/s ({1e6 / per_processor[name][-1]:.1f} us of a processor)"
                        for name in rates
                    )
                )
            for name, what in (
                ("floor", "the floor of a first scan"),
                ("first", "first scan"),
                ("again", "rescan"),
            ):
                for taken, of in ((rates, "files/s"), (per_processor, "files per second of a processor")):
                    results.append(
                        compared(
                            taken[name],
                            taken["walk"],
                            GOALS[kind],
                            what=f"{what} against os.scandir and stat, {of}",
                            database=kind,
                            megabytes=round(memory),
                            megabytes_goal=MOST_MEGABYTES,
                        )
                    )
    report("scan", results, files=options.files)


if __name__ == "__main__":
    main()
