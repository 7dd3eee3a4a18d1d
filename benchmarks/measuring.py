"""What benchmarks share: pairs measured in turn, both databases, and what a command prints at its end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from postgres import PROGRAMS, PostgreSQL

BOTH = ("sqlite", "postgresql")


def parser(doc: str | None, pairs: int = 5) -> argparse.ArgumentParser:
    """With the options that all have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument(
        "--folder", type=Path, help="where files and databases are made; default: a temporary one"
    )
    made.add_argument("--pairs", type=int, default=pairs, help=f"default: {pairs}")
    return made


def databases_option(made: argparse.ArgumentParser) -> None:
    made.add_argument("--database", choices=BOTH, action="append", help="default: both")


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder of its own, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="featd-bench-", dir=folder) as name:
        yield Path(name)


class Databases:
    """Empty databases, on a PostgreSQL of their own, with fsync."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._server: PostgreSQL | None = None

    def new(self, kind: str) -> str:
        """The address of another one."""
        self._made += 1
        if kind == "sqlite":
            return f"sqlite:///{self._folder}/{self._made}.db"
        self._server = self._server or PostgreSQL(durable=True)
        return self._server.url(self._server.create())

    def server_seconds(self) -> float:
        """Seconds of processors that the server has taken so far, with those of its connections."""
        return 0.0 if self._server is None else server_seconds(self._server)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def server_seconds(server: PostgreSQL) -> float:
    """Seconds of processors that the server has taken so far, with those of its connections."""
    head = int((server.home / "data/postmaster.pid").read_text().split()[0])
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if entry.name == str(head):
            total += sum(map(int, fields[11:15]))
        elif fields[1] == str(head):
            total += sum(map(int, fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


@contextmanager
def databases(folder: Path) -> Iterator[Databases]:
    made = Databases(folder)
    try:
        yield made
    finally:
        made.close()


def chosen(given: Sequence[str] | None) -> list[str]:
    """The databases to measure: without PostgreSQL's programs, SQLite alone."""
    return [kind for kind in given or BOTH if kind == "sqlite" or PROGRAMS]


def compared(
    mine: Sequence[float], other: Sequence[float], goal: float, *, most: bool = False, **more: Any
) -> dict[str, Any]:
    """The medians of two figures of which each pair was measured in turn, and their ratio. `goal`: the least ratio, or
    the `most`."""
    ratio = statistics.median(mine) / statistics.median(other)
    ratios = [one / two for one, two in zip(mine, other, strict=True)]
    return {
        **more,
        "median": round(statistics.median(mine), 4),
        "median_of_other": round(statistics.median(other), 4),
        "ratio": round(ratio, 3),
        "ratios_from": round(min(ratios), 3),
        "ratios_to": round(max(ratios), 3),
        "pairs": len(mine),
        "goal": goal,
        "reached": ratio <= goal if most else ratio >= goal,
    }


def report(name: str, results: Sequence[dict[str, Any]], **more: Any) -> None:
    """One JSON document on standard output, ready to be kept."""
    load = os.getloadavg()
    machine = {"cores": len(os.sched_getaffinity(0)), "load": round(load[0], 1)}
    print(json.dumps({"benchmark": name, "machine": machine, **more, "results": list(results)}, indent=2))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
