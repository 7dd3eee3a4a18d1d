"""Walking a root: one open folder per level, any number of files, links and special files passed over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from featd import logs
from featd.catalog.enqueue import FoundFile
from featd.ingest.globs import Globs
from featd.paths import for_terminal, to_catalog

log = logs.get("ingest")


@dataclass(slots=True)
class Walked:
    """What a walk saw beside the files it gave."""

    files: int = 0
    folders: int = 0
    unreadable: list[str] = field(default_factory=list)


def walk(
    root: bytes, globs: Globs, follow_symlinks: bool, seen: Walked, start: bytes = b""
) -> Iterator[FoundFile]:
    """Every wanted regular file beneath `root` (or its folder `start`), folder by folder.

    A symbolic link is followed only where `follow_symlinks`, and then only to what is beneath the root. A
    folder that cannot be read is noted in `seen`: what is in it is not known to be gone.
    """
    real_root = os.path.realpath(root)
    stack = [start]
    entered: set[tuple[int, int]] = set()
    while stack:
        folder = stack.pop()
        absolute = os.path.join(root, folder) if folder else root
        try:
            entries = os.scandir(absolute)
        except FileNotFoundError:
            continue
        except OSError as error:
            seen.unreadable.append(to_catalog(folder))
            log.warning(
                "unreadable",
                "a folder cannot be read; its images keep their state",
                folder=for_terminal(to_catalog(absolute)),
                error=error.strerror,
            )
            continue
        with entries:
            if follow_symlinks:
                here = os.stat(absolute)
                if (here.st_dev, here.st_ino) in entered:
                    continue
                entered.add((here.st_dev, here.st_ino))
            seen.folders += 1
            below = []
            for entry in entries:
                raw = os.path.join(folder, entry.name) if folder else entry.name
                if entry.is_symlink() and not (follow_symlinks and _stays_beneath(entry.path, real_root)):
                    continue
                if entry.is_dir(follow_symlinks=follow_symlinks):
                    if not globs.excludes_folder(to_catalog(raw)):
                        below.append(raw)
                    continue
                path = to_catalog(raw)
                if not globs.wants(path):
                    continue
                try:
                    found = entry.stat(follow_symlinks=follow_symlinks)
                except OSError:
                    continue  # vanished since it was listed
                if stat.S_ISREG(found.st_mode):
                    seen.files += 1
                    yield FoundFile(path, found.st_size, found.st_mtime_ns)
            # Names, not order of creation: a scan that is watched goes where one expects it to go.
            stack.extend(sorted(below, reverse=True))


def _stays_beneath(path: bytes, real_root: bytes) -> bool:
    target = os.path.realpath(path)
    return target == real_root or target.startswith(real_root.rstrip(b"/") + b"/")
