"""Walking a root: one open folder per level, any number of files. Links and special files are skipped."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from featd import logs
from featd.catalog.enqueue import FoundFile
from featd.paths import for_terminal, mtime_of, to_catalog
from featd.roots import Globs

log = logs.get("ingest")

PORTION_FILES = 1000
"""Files of one folder that are handed on at once."""


@dataclass(slots=True)
class Walked:
    """What a walk has seen beside the files that it returned."""

    files: int = 0
    folders: int = 0
    unreadable: list[str] = field(default_factory=list)
    entered: set[tuple[int, int]] = field(default_factory=set)
    """Folders that were entered, where links are followed, so that each is entered once."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of the wanted files of one folder; `last`: there are no more in it."""

    folder: bytes
    files: list[FoundFile]
    last: bool


def walk(
    root: bytes,
    globs: Globs,
    follow_symlinks: bool,
    seen: Walked,
    start: bytes = b"",
    *,
    after: bytes | None = None,
    upto: bytes | None = None,
) -> Iterator[Portion]:
    """Every wanted regular file beneath `root` (or its folder `start`), folder by folder, in order of name.

    A folder comes before those in it. Only folders behind `after` and not behind `upto` in this order are entered.
    A symbolic link is followed only where `follow_symlinks`, and then only to what is beneath the root. A folder that
    cannot be read is noted in `seen`: its files are not known to be gone.
    """
    real_root = os.path.realpath(root)
    first = None if after is None else _place(after)
    last = None if upto is None else _place(upto)
    stack = [start]
    while stack:
        folder = stack.pop()
        place = _place(folder)
        if last is not None and place > last:
            return
        passed = first is not None and place <= first
        if passed and first is not None and first[: len(place)] != place:
            continue  # the folder and all beneath it come before `after`
        below: list[bytes] = []
        try:
            yield from _look_into(root, real_root, folder, globs, follow_symlinks, seen, below, passed)
        except FileNotFoundError:
            pass
        except OSError as error:
            seen.unreadable.append(to_catalog(folder))
            log.warning(
                "folder_unreadable",
                "cannot read a folder; its images keep their state",
                folder=for_terminal(to_catalog(os.path.join(root, folder))),
                error=error.strerror,
            )
        # In order of name, so that a scan can continue where it was interrupted.
        stack.extend(sorted(below, reverse=True))


def _look_into(
    root: bytes,
    real_root: bytes,
    folder: bytes,
    globs: Globs,
    follow_symlinks: bool,
    seen: Walked,
    below: list[bytes],
    passed: bool,
) -> Iterator[Portion]:
    """The wanted files of one folder; its folders go to `below`. `passed`: only the folders are wanted."""
    absolute = os.path.join(root, folder) if folder else root
    if follow_symlinks:
        here = os.stat(absolute)
        if (here.st_dev, here.st_ino) in seen.entered:
            return
        seen.entered.add((here.st_dev, here.st_ino))
    with os.scandir(absolute) as entries:
        seen.folders += 1
        last = False
        while not last:
            some = list(islice(entries, PORTION_FILES))
            last = len(some) < PORTION_FILES
            files = []
            for entry in some:
                raw = os.path.join(folder, entry.name) if folder else entry.name
                if entry.is_symlink() and not (follow_symlinks and _stays_beneath(entry.path, real_root)):
                    continue
                try:
                    is_folder = entry.is_dir(follow_symlinks=follow_symlinks)
                except OSError:
                    continue  # a link that leads round in a circle
                if is_folder:
                    if not globs.excludes_folder(to_catalog(raw)):
                        below.append(raw)
                    continue
                if passed or not globs.wants(path := to_catalog(raw)):
                    continue
                try:
                    found = entry.stat(follow_symlinks=follow_symlinks)
                except OSError:
                    continue  # vanished since it was listed
                if stat.S_ISREG(found.st_mode):
                    files.append(FoundFile(path, found.st_size, mtime_of(found)))
            seen.files += len(files)
            if not passed:
                yield Portion(folder, files, last)


def _place(folder: bytes) -> tuple[bytes, ...]:
    """Where a folder stands in the order of a walk."""
    return tuple(folder.split(b"/")) if folder else ()


def _stays_beneath(path: bytes, real_root: bytes) -> bool:
    target = os.path.realpath(path)
    return target == real_root or target.startswith(real_root.rstrip(b"/") + b"/")
