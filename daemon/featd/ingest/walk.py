"""Walking a root in the order in which the catalog has its paths. Links and special files are skipped."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice

from featd import logs
from featd.catalog.enqueue import FileRow, FoundFile
from featd.paths import (
    ctime_of,
    for_terminal,
    from_catalog,
    full_path,
    mtime_of,
    open_folder_beneath,
    to_catalog,
)
from featd.roots import Globs

log = logs.get("ingest")

PORTION_FILES = 1000
"""Files of one folder that are handed on at once."""
MOST_NAMES = 100_000
"""Names of one folder that are kept at once, for they must be sorted. A larger folder is listed several times."""
MOST_KINDS = 50
"""Kinds of ignored files that are counted apart."""


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
        self, start: bytes = b"", *, after: str = "", upto: str | None = None
    ) -> Iterator[list[FileRow]]:
        """Every wanted regular file beneath the root (or its folder `start`), in order of path: in catalog form,
        compared by bytes, as the catalog does. Portions may be empty, so that the caller can pause.

        Only files behind `after` and not behind `upto`, both in catalog form.
        """
        # Of the folders that are open in this sense, only the innermost has a file descriptor.
        folders = [self._look_into(start, after, upto)]
        while folders:
            step = next(folders[-1], None)
            if step is None:
                folders.pop()
            elif isinstance(step, bytes):
                folders.append(self._look_into(step, after, upto))
            else:
                self.files += len(step)
                yield step

    def _cannot_read(self, prefix: str, error: OSError) -> None:
        folder = prefix[:-1]
        if self.unreadable[-1:] == [folder]:
            return
        self.unreadable.append(folder)
        log.warning(
            "folder_unreadable",
            "cannot read a folder or reach its files; its images keep their state",
            folder=for_terminal(full_path(os.fsdecode(self._root), folder)),
            error=error.strerror,
        )

    def _look_into(self, folder: bytes, after: str, upto: str | None) -> Iterator[list[FileRow] | bytes]:
        """What is in one folder, in order: portions of its files, and the folders in it, which must be walked there."""
        prefix = f"{to_catalog(folder)}/" if folder else ""
        low = after.removeprefix(prefix) if after.startswith(prefix) else ""
        high = upto.removeprefix(prefix) if upto is not None and upto.startswith(prefix) else None
        again = False
        fd: int | None = None
        try:
            while True:
                fd = self._open(folder) if fd is None else fd
                if not again and not self._enter(fd):
                    return
                names = yield from self._list(fd, prefix, low, high, again)
                for run in _runs(names):
                    if isinstance(run, str):
                        if fd is not None:
                            os.close(fd)
                            fd = None
                        yield from_catalog(prefix + run[:-1])
                    else:
                        fd = self._open(folder) if fd is None else fd
                        yield self._look_at(fd, prefix, run)
                if len(names) < MOST_NAMES:
                    return
                low, again = names[-1], True
        except OSError as error:
            # Vanished, or swapped for a link, which is not followed.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self._cannot_read(prefix, error)
        finally:
            if fd is not None:
                os.close(fd)

    def _enter(self, fd: int) -> bool:
        """Whether this folder was not entered before, by another of its names."""
        self.folders += 1
        if not self._follow:
            return True
        here = os.fstat(fd)
        place = (here.st_dev, here.st_ino)
        known = place in self._entered
        self._entered.add(place)
        return not known

    def _list(
        self, fd: int, prefix: str, low: str, high: str | None, again: bool
    ) -> Generator[list[FileRow], None, list[str]]:
        """The first names of a folder behind `low` and not behind `high`, sorted: wanted files, and folders with a
        slash at the end. `again`: not for the first time, and the folder `low` itself is over."""
        names: list[str] = []
        with os.scandir(fd) as entries:
            while some := list(islice(entries, PORTION_FILES)):
                files, folders, links = self._sort(some, prefix)
                if low or high is not None:
                    files = [name for name in files if low < name and (high is None or name <= high)]
                    links = [name for name in links if low < name and (high is None or name <= high)]
                    folders = [
                        name
                        for name in folders
                        if (low < name or (low.startswith(name) and not again))
                        and (high is None or name <= high)
                    ]
                wanted = self._globs.wanted(prefix, files)
                if not again:
                    self._count_ignored(
                        prefix, set(files).difference(wanted) if len(wanted) < len(files) else ()
                    )
                    for _ in links:
                        self._ignore("links")
                names += wanted
                names += [name for name in folders if not self._globs.excludes_folder(prefix + name[:-1])]
                if len(names) > 2 * MOST_NAMES:
                    names = sorted(names)[:MOST_NAMES]
                yield []
        return sorted(names)[:MOST_NAMES]

    def _sort(
        self, entries: Sequence[os.DirEntry[str]], prefix: str
    ) -> tuple[list[str], list[str], list[str]]:
        """The names in catalog form of files, of folders (with a slash), and of links that are not followed."""
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif not entry.is_symlink():
                files.append(entry.name)  # a FIFO or the like: a closer look will tell
            elif self._follow and self._stays_beneath(prefix, entry.name):
                with contextlib.suppress(OSError):  # a link that leads round in a circle
                    (folders if entry.is_dir() else files).append(entry.name)
            else:
                links.append(entry.name)
        return _in_catalog_form(files), [f"{name}/" for name in _in_catalog_form(folders)], links

    def _look_at(self, fd: int, prefix: str, names: Sequence[str]) -> list[FileRow]:
        """Those of these files of a folder that are regular."""
        look, follow = os.stat, self._follow
        raws: Sequence[str | bytes] = names if _is_plain(names) else [from_catalog(name) for name in names]
        with contextlib.suppress(OSError):
            seen = [look(raw, dir_fd=fd, follow_symlinks=follow) for raw in raws]
            return found_files(prefix, names, seen)
        found: list[FileRow] = []
        for name, raw in zip(names, raws, strict=True):
            try:
                found += found_files(prefix, [name], [look(raw, dir_fd=fd, follow_symlinks=follow)])
            except FileNotFoundError:
                pass  # vanished since it was listed
            except OSError as error:
                self._cannot_read(prefix, error)
        return found

    def _open(self, folder: bytes) -> int:
        if self._follow:
            return os.open(os.path.join(self._root, folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_folder_beneath(root_fd, folder)
        finally:
            os.close(root_fd)

    def _count_ignored(self, prefix: str, names: Iterable[str]) -> None:
        for name in names:
            if not self._globs.excludes(prefix + name):
                self._ignore(_kind_of(prefix + name))

    def _ignore(self, kind: str) -> None:
        self.ignored[kind if kind in self.ignored or len(self.ignored) < MOST_KINDS else "others"] += 1

    def _stays_beneath(self, prefix: str, name: str) -> bool:
        target = os.path.realpath(os.path.join(self._root, from_catalog(prefix), os.fsencode(name)))
        return target == self._real_root or target.startswith(self._real_root.rstrip(b"/") + b"/")


def found_file(path: str, found: os.stat_result) -> FoundFile:
    """What the catalog keeps of a file. `path`: in catalog form."""
    return FoundFile(path, found.st_size, mtime_of(found), ctime_of(found))


def found_files(prefix: str, names: Sequence[str], seen: Sequence[os.stat_result]) -> list[FileRow]:
    """The same for many files of a folder, of which those that are not regular are left out."""
    is_regular = stat.S_ISREG
    regular = [(name, one) for name, one in zip(names, seen, strict=True) if is_regular(one.st_mode)]
    times = [one.st_mtime_ns for _, one in regular] + [one.st_ctime_ns for _, one in regular]
    if times and (min(times) < 0 or max(times) >= 2**63):
        return [found_file(prefix + name, one) for name, one in regular]
    return [(prefix + name, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in regular]


def _runs(names: Sequence[str]) -> Iterator[Sequence[str] | str]:
    """The folders among sorted names, and the files between them, PORTION_FILES at once."""
    begin = 0
    for at in [*(at for at, name in enumerate(names) if name[-1] == "/"), len(names)]:
        for first in range(begin, at, PORTION_FILES):
            yield names[first : min(first + PORTION_FILES, at)]
        if at < len(names):
            yield names[at]
        begin = at + 1


def _is_plain(names: Sequence[str]) -> bool:
    """Whether these names are the same on disk and in the catalog. One look for all, since nearly always they are."""
    together = "".join(names)
    return together.isascii() and together.isprintable() and "\\" not in together


def _in_catalog_form(names: list[str]) -> list[str]:
    return names if _is_plain(names) else [to_catalog(os.fsencode(name)) for name in names]


def _kind_of(path: str) -> str:
    """Under which name an ignored file is counted."""
    if path.startswith(".") or "/." in path:
        return "dot names"
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return extension.lower()[:12] if stem and dot else "no extension"
