"""Places: which image of a root each row of a script's files is about.

The names are compared with the files that a scan of the root finds. There may be many millions of both, so they are in
a temporary SQLite database without a name: it is no catalog, and nobody else sees it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from featd.adopt.outcome import Outcome, Why
from featd.adopt.script_file import ScriptFile
from featd.catalog.enqueue import FoundFile
from featd.config import RootConfig
from featd.errors import FeatdError
from featd.ingest.walk import Walk
from featd.paths import MOST_CATALOG_BYTES, from_catalog, to_catalog
from featd.progress import Advance
from featd.roots import Globs

NAMES = 4096
MOST_NAME_BYTES = 4096
"""The longest path that Linux takes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Row `row` of the `file`th file is about the image `found`."""

    file: int
    row: int
    found: FoundFile


class Places:
    """Files of one root, and the rows that are about them. Use as a context manager."""

    def __init__(self, root: RootConfig, others: Sequence[RootConfig] = ()) -> None:
        """`others`: more roots, in which other names may be."""
        self._root = root
        self._others = [_parts(os.fsencode(other.path)) for other in others if other.path != root.path]
        real = os.path.realpath(root.path)
        self._roots = [_parts(os.fsencode(one)) for one in dict.fromkeys((str(root.path), real))]
        self._db = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA cache_size = -131072",
            # `back`: the path with its last part first, so that the files whose path ends alike are neighbours.
            "CREATE TABLE files (id INTEGER PRIMARY KEY, back TEXT, size INTEGER, mtime INTEGER, ctime INTEGER)",
            "CREATE TABLE places (id INTEGER PRIMARY KEY, file INTEGER, row INTEGER, doubtful INTEGER DEFAULT 0)",
            "BEGIN",
        ):
            self._db.execute(statement)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Places:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """FeatdError where the temporary database failed."""
        self.close()
        if isinstance(error, sqlite3.Error):
            raise FeatdError(
                f"the temporary database of names: {error}: set TMPDIR to a folder with more room"
            ) from error

    # The files of the root

    def scan(self, advance: Advance) -> tuple[int, Sequence[str]]:
        """Find the images of the root; returns how many, and the folders that cannot be read."""
        walk = Walk(
            os.fsencode(self._root.path),
            Globs(self._root.include, self._root.exclude),
            self._root.follow_symlinks,
        )
        for portion in walk.portions():
            rows = ((_turned(path), *rest) for path, *rest in portion)
            self._db.executemany("INSERT INTO files (back, size, mtime, ctime) VALUES (?, ?, ?, ?)", rows)
            advance("looking for images", walk.files, 0)
        self._db.execute("CREATE UNIQUE INDEX by_name ON files (back)")
        return walk.files, walk.unreadable

    # Names

    def match(self, files: Sequence[ScriptFile], outcome: Outcome, advance: Advance) -> None:
        """Find the image of each row; what has none is left in `outcome`. ScriptFileError."""
        total = sum(file.rows for file in files)
        done = 0
        for number, file in enumerate(files):
            folders = any(b"/" in name for names in _names(file) for name in names)
            row = 0
            for names in _names(file):
                for name in names:
                    found, detail = self._find(name, folders)
                    if isinstance(found, int):
                        self._place(files, number, row, name, found, outcome)
                    else:
                        outcome.leave(file, row, name, found, detail)
                    row += 1
                advance("matching names", done + row, total)
            done += file.rows
        self._db.execute("CREATE INDEX by_row ON places (file, row)")

    def _find(self, name: bytes, folders: bool) -> tuple[int | Why, str]:
        """The id of the image of this name, or why there is none. `folders`: the names of its file have folders,
        so that one without is in the root itself."""
        parts = _parts(name)
        if not parts or ".." in parts or b"\0" in name or len(name) > MOST_NAME_BYTES:
            return Why.NO_PATH, ""
        if name.startswith(b"/"):
            for root in self._roots:
                if parts[: len(root)] == root:
                    return self._exactly(parts[len(root) :])
            if any(parts[: len(other)] == other for other in self._others):
                return Why.NOT_FOUND, "below another root"
            # Of another machine, or from before the root was moved: some last parts are the path below the root.
            found = {one for at in range(len(parts)) if (one := self._id(parts[at:])) is not None}
        else:
            if folders and (one := self._id(parts)) is not None:
                return one, ""
            found = self._ending_with(parts)
            # Relative to a folder above the root.
            for root in self._roots:
                for at in range(1, min(len(root), len(parts) - 1) + 1):
                    if root[-at:] == parts[:at] and (one := self._id(parts[at:])) is not None:
                        found.add(one)
        if len(found) > 1:
            return Why.IN_DOUBT, f"may be {' or '.join(self._path(one) for one in sorted(found)[:2])}"
        return (found.pop(), "") if found else self._missing(parts)

    def _exactly(self, parts: list[str]) -> tuple[int | Why, str]:
        found = self._id(parts)
        return (found, "") if found is not None else self._missing(parts)

    def _missing(self, parts: list[str]) -> tuple[Why, str]:
        there = parts and os.path.lexists(self._root.path / os.fsdecode(_raw(parts)))
        return (Why.LEFT_OUT if there else Why.NOT_FOUND), ""

    def _id(self, parts: list[str]) -> int | None:
        row = self._db.execute("SELECT id FROM files WHERE back = ?", ("/".join(reversed(parts)),)).fetchone()
        return None if row is None else int(row[0])

    def _ending_with(self, parts: list[str]) -> set[int]:
        """Two at most of the files whose path ends with these parts."""
        back = "/".join(reversed(parts))
        bounds = (back, f"{back}/", f"{back}0")
        statement = "SELECT id FROM files WHERE back = ? OR (back > ? AND back < ?) LIMIT 2"
        return {int(row[0]) for row in self._db.execute(statement, bounds)}

    def _path(self, image: int) -> str:
        (back,) = self._db.execute("SELECT back FROM files WHERE id = ?", (image,)).fetchone()
        return _turned(back)

    # Rows

    def _place(
        self, files: Sequence[ScriptFile], number: int, row: int, name: bytes, image: int, outcome: Outcome
    ) -> None:
        file = files[number]
        (mtime,) = self._db.execute("SELECT mtime FROM files WHERE id = ?", (image,)).fetchone()
        if mtime > file.made_at_ns:
            outcome.leave(file, row, name, Why.NEWER)
            return
        if len((path := self._path(image)).encode()) > MOST_CATALOG_BYTES:
            outcome.leave(file, row, name, Why.NO_PATH, "longer than the catalog can hold")
            return
        earlier = self._db.execute("SELECT file, row, doubtful FROM places WHERE id = ?", (image,)).fetchone()
        if earlier is None:
            self._db.execute("INSERT INTO places (id, file, row) VALUES (?, ?, ?)", (image, number, row))
            return
        first, first_row, doubtful = files[earlier[0]], earlier[1], earlier[2]
        one, other = first.vectors(first_row, first_row + 1), file.vectors(row, row + 1)
        if not doubtful and np.array_equal(one, other, equal_nan=True):
            outcome.same += 1
            return
        detail = f"different vectors have the name of {path}"
        if not doubtful:
            self._db.execute("UPDATE places SET doubtful = 1 WHERE id = ?", (image,))
            (first_name,) = first.names(first_row, first_row + 1)
            outcome.leave(first, first_row, first_name, Why.IN_DOUBT, detail)
        outcome.leave(file, row, name, Why.IN_DOUBT, detail)

    def count(self) -> int:
        """How many rows have a place."""
        return int(self._db.execute("SELECT count(*) FROM places WHERE NOT doubtful").fetchone()[0])

    def drawn(self, count: int, seed: int | None) -> list[Place]:
        """`count` of them by chance, in an order by chance; all where there are fewer."""
        ids = np.fromiter(
            (row[0] for row in self._db.execute("SELECT id FROM places WHERE NOT doubtful ORDER BY id")),
            np.int64,
        )
        dice = np.random.default_rng(seed)
        return [
            next(self._read("places.id = ?", (image,))) for image in dice.permutation(ids)[:count].tolist()
        ]

    def blocks(self, files: Sequence[ScriptFile]) -> Iterator[list[Place]]:
        """All of them in the order of files and rows, in groups of one file and at most its `block_rows`."""
        ordered = self._read("NOT doubtful ORDER BY file, row", ())
        for _, some in groupby(ordered, lambda one: (one.file, one.row // files[one.file].block_rows)):
            yield list(some)

    def _read(self, which: str, given: Sequence[int]) -> Iterator[Place]:
        statement = (
            "SELECT file, row, back, size, mtime, ctime FROM places JOIN files ON files.id = places.id WHERE "
        )
        for file, row, back, size, mtime, ctime in self._db.execute(statement + which, given):
            yield Place(file, row, FoundFile(_turned(back), size, mtime, ctime))


def _names(file: ScriptFile) -> Iterator[list[bytes]]:
    for start in range(0, file.rows, NAMES):
        yield file.names(start, min(start + NAMES, file.rows))


def _parts(name: bytes) -> list[str]:
    """The folders and the name of a path, in catalog form; empty ones and `.` do not count."""
    return [part for part in to_catalog(name).split("/") if part not in ("", ".")]


def _turned(path: str) -> str:
    return "/".join(reversed(path.split("/")))


def _raw(parts: Sequence[str]) -> bytes:
    return from_catalog("/".join(parts))
