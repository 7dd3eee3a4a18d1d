"""Walking a root: one open folder per level, any number of files. Links and special files are skipped."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from featd import logs
from featd.catalog.enqueue import FoundFile
from featd.paths import ctime_of, for_terminal, mtime_of, open_folder_beneath, to_catalog
from featd.roots import Globs

log = logs.get("ingest")

PORTION_FILES = 1000
"""Files of one folder that are handed on at once."""
MOST_KINDS = 50
"""Kinds of ignored files that are counted apart."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of the wanted files of one folder; `last`: there are no more in it."""

    folder: bytes
    files: list[FoundFile]
    last: bool


class Walk:
    """A walk of the folder `root`, and what it has seen beside the files that it returned.

    A symbolic link is followed only where `follow_symlinks`, and then only to what is beneath the root. Elsewhere
    folders are opened one from the other, so that a folder that is swapped for a link leads nowhere.
    """

    def __init__(self, root: bytes, globs: Globs, follow_symlinks: bool = False) -> None:
        self.files = 0
        self.folders = 0
        self.unreadable: list[str] = []
        """Folders that cannot be read, or whose files cannot be reached: nothing in them is known to be gone."""
        self.ignored: Counter[str] = Counter()
        """Files that were passed over, by extension; `links` and `dot names` are counted as such."""
        self._root = root
        self._real_root = os.path.realpath(root)
        self._globs = globs
        self._follow = follow_symlinks
        self._entered: set[tuple[int, int]] = set()
        """Folders that were entered, where links are followed, so that each is entered once."""

    def portions(
        self, start: bytes = b"", *, after: bytes | None = None, upto: bytes | None = None
    ) -> Iterator[Portion]:
        """Every wanted regular file beneath the root (or its folder `start`), folder by folder, in order of name.

        A folder comes before those in it. Only folders behind `after` and not behind `upto` in this order are entered.
        """
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
                yield from self._look_into(folder, below, passed)
            except OSError as error:
                # Vanished, or swapped for a link, which is not followed.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    self._cannot_read(folder, error)
            # In order of name, so that a scan can continue where it was interrupted.
            stack.extend(sorted(below, reverse=True))

    def _cannot_read(self, folder: bytes, error: OSError) -> None:
        if self.unreadable[-1:] == [to_catalog(folder)]:
            return
        self.unreadable.append(to_catalog(folder))
        log.warning(
            "folder_unreadable",
            "cannot read a folder or reach its files; its images keep their state",
            folder=for_terminal(to_catalog(os.path.join(self._root, folder))),
            error=error.strerror,
        )

    def _look_into(self, folder: bytes, below: list[bytes], passed: bool) -> Iterator[Portion]:
        """The wanted files of one folder; its folders go to `below`. `passed`: only the folders are wanted."""
        fd = self._open(folder)
        try:
            if self._follow:
                here = os.fstat(fd)
                if (here.st_dev, here.st_ino) in self._entered:
                    return
                self._entered.add((here.st_dev, here.st_ino))
            with os.scandir(fd) as entries:
                self.folders += 1
                last = False
                while not last:
                    some = list(islice(entries, PORTION_FILES))
                    last = len(some) < PORTION_FILES
                    files = [file for entry in some if (file := self._look_at(folder, entry, below, passed))]
                    self.files += len(files)
                    if not passed:
                        yield Portion(folder, files, last)
        finally:
            os.close(fd)

    def _open(self, folder: bytes) -> int:
        if self._follow:
            return os.open(os.path.join(self._root, folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_folder_beneath(root_fd, folder)
        finally:
            os.close(root_fd)

    def _look_at(
        self, folder: bytes, entry: os.DirEntry[str], below: list[bytes], passed: bool
    ) -> FoundFile | None:
        """The entry as a wanted file, or None. A folder goes to `below`."""
        name = os.fsencode(entry.name)
        raw = os.path.join(folder, name) if folder else name
        path = to_catalog(raw)
        if entry.is_symlink() and not (self._follow and self._stays_beneath(raw)):
            if not passed:
                self._ignore("links")
            return None
        try:
            if entry.is_dir(follow_symlinks=self._follow):
                if not self._globs.excludes_folder(path):
                    below.append(raw)
                return None
        except OSError:
            return None  # a link that leads round in a circle
        if passed:
            return None
        if not self._globs.wants(path):
            if not self._globs.excludes(path):
                self._ignore(_kind_of(path))
            return None
        try:
            found = entry.stat(follow_symlinks=self._follow)
        except FileNotFoundError:
            return None  # vanished since it was listed
        except OSError as error:
            self._cannot_read(folder, error)
            return None
        return found_file(path, found) if stat.S_ISREG(found.st_mode) else None

    def _ignore(self, kind: str) -> None:
        self.ignored[kind if kind in self.ignored or len(self.ignored) < MOST_KINDS else "others"] += 1

    def _stays_beneath(self, raw: bytes) -> bool:
        target = os.path.realpath(os.path.join(self._root, raw))
        return target == self._real_root or target.startswith(self._real_root.rstrip(b"/") + b"/")


def found_file(path: str, found: os.stat_result) -> FoundFile:
    """What the catalog keeps of a file. `path`: in catalog form."""
    return FoundFile(path, found.st_size, mtime_of(found), ctime_of(found))


def _place(folder: bytes) -> tuple[bytes, ...]:
    """Where a folder stands in the order of a walk."""
    return tuple(folder.split(b"/")) if folder else ()


def _kind_of(path: str) -> str:
    """Under which name an ignored file is counted."""
    if path.startswith(".") or "/." in path:
        return "dot names"
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return extension.lower()[:12] if stem and dot else "no extension"
