"""A root is a watched folder: whether it is there and can be believed, and which of its files are images."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from featd.errors import ConfigError
from featd.paths import to_catalog

LOOK_SECONDS = 3.0
"""A look at a healthy root takes milliseconds, over a slow network some tenths of a second."""
_OCTAL = re.compile(rb"\\([0-7]{3})")


class RootState(StrEnum):
    """Whether a root can be believed. Only `online` lets rows become gone, or be claimed."""

    ONLINE = "online"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    SILENT = "not answering"
    UNMOUNTED = "not mounted"  # it was a mount point before; what lies beneath is not what it showed
    EMPTY = "empty"  # what an unmounted disk leaves: an empty mount point


def root_state(root: Path) -> RootState:
    """Look at a root now. One that does not answer within LOOK_SECONDS, as on a dead NFS mount, is SILENT; until that
    look has ended, the answer is the same at once."""
    with _lock:
        look = _looks.get(root)
        fresh = look is None or not look.is_alive()
        if look is None or fresh:
            look = _looks[root] = _Look(root)
            look.start()
    look.join(LOOK_SECONDS if fresh else 0.0)
    return look.state


def mounts_beneath(root: Path) -> set[str]:
    """The mount points at and beneath `root`, in catalog form and relative to it; "" is the root itself.

    A mount that shows what a mount above it shows at this place does not count: systemd makes such ones for a service's
    sandbox, and commands by hand do not see them.
    """
    mounts = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        _, _, device, *paths = line.split(b" ")[:5]
        source, point = (_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), path) for path in paths)
        mounts.append((device, source, point))
    found = set()
    here = os.fsencode(root.resolve())
    for device, source, point in mounts:
        inside = os.path.relpath(point, here)
        if inside == b".." or inside.startswith(b"../"):
            continue
        shown = {
            os.path.normpath(from_.rstrip(b"/") + b"/" + os.path.relpath(point, at))
            for other, from_, at in mounts
            if other == device and at != point and point.startswith(at.rstrip(b"/") + b"/")
        }
        if source not in shown:
            found.add("" if inside == b"." else to_catalog(inside))
    return found


def check_apart(roots: Sequence[Path]) -> None:
    """ConfigError where two roots are one folder by a link or a mount, or one contains the other: an image under both
    would be two images. A root that is offline is not looked at."""
    real = [(root, root.resolve()) for root in roots if root_state(root) is RootState.ONLINE]
    for at, (one, here) in enumerate(real):
        for other, there in real[at + 1 :]:
            if here.is_relative_to(there) or there.is_relative_to(here) or here.samefile(there):
                raise ConfigError(
                    f"roots: {one} and {other} are one folder, or one contains the other: keep one of them"
                )


class _Look(threading.Thread):
    """One look at a root, in a thread of its own, since the kernel may block it for ever."""

    def __init__(self, root: Path) -> None:
        super().__init__(name="look", daemon=True)
        self.state = RootState.SILENT
        self._root = root

    def run(self) -> None:
        try:
            with os.scandir(self._root) as entries:
                self.state = RootState.ONLINE if next(entries, None) is not None else RootState.EMPTY
        except (FileNotFoundError, NotADirectoryError):
            self.state = RootState.MISSING
        except OSError:
            self.state = RootState.UNREADABLE


_looks: dict[Path, _Look] = {}
_lock = threading.Lock()


_ENDING = re.compile(r"\*\*/\*(\.[A-Za-z0-9]+)")
_NAME = re.compile(r"\*\*/([-A-Za-z0-9@#$._ ]+)(\*?)")


def _is_plain(path: str) -> bool:
    """Other letters than ASCII's have their own rules of upper and lower case, and expressions theirs of a line's end:
    there the patterns themselves decide."""
    return path.isascii() and "\n" not in path


class Globs:
    """A root's patterns, ignoring case. They match paths in catalog form, relative to the root. As in a shell, `*` does
    not match a leading dot, but in an exclude pattern it does."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str] = ()) -> None:
        """ValueError where a pattern expands to too many, as `{1..100000}` does."""
        self._include = _compile(include)
        self._exclude = _compile(exclude, dots=True)
        self._excludes_any = bool(exclude)
        # Most patterns say no more than this, and millions of paths are compared with them.
        endings = [_ENDING.fullmatch(pattern) for pattern in include]
        self._endings = None if None in endings else tuple(one[1].lower() for one in endings if one)
        names = [_NAME.fullmatch(pattern) for pattern in exclude]
        self._names = None if None in names else frozenset(n[1].lower() for n in names if n and not n[2])
        self._beginnings = tuple(one[1].lower() for one in names if one and one[2])
        self._folder = ("", True)
        """The last folder that `takes` was asked of, and the answer: paths come folder by folder."""

    def wants(self, path: str) -> bool:
        """Whether a file of this path is an image of the root."""
        if self._endings is None or not _is_plain(path):
            return self._include.match(path) is not None and not self.excludes(path)
        ends = path.lower().endswith(self._endings) and path[0] != "." and "/." not in path
        return ends and not self.excludes(path)

    def wanted(self, prefix: str, names: Sequence[str]) -> list[str]:
        """Those of the files `names` of one folder that are images of the root. `prefix`: the folder with a slash at
        its end, or "" for the root."""
        if self._endings is None or self._names is None or not _is_plain(prefix + "".join(names)):
            return [name for name in names if self.wants(prefix + name)]
        if prefix[:1] == "." or "/." in prefix:
            return []
        endings, left_out, beginnings = self._endings, self._names, self._beginnings
        return [
            name
            for name in names
            if (lower := name.lower()).endswith(endings)
            and name[0] != "."
            and lower not in left_out
            and not lower.startswith(beginnings)
        ]

    def excludes(self, path: str) -> bool:
        """Whether a file of this path is left out on purpose."""
        if self._names is None or not _is_plain(path):
            return self._exclude.match(path) is not None
        name = path.rstrip("/").rpartition("/")[2].lower()
        return name in self._names or name.startswith(self._beginnings)

    def takes(self, path: str) -> bool:
        """Whether a walk of the root would reach the file `path`, and want it."""
        folder, taken = path.rpartition("/")[0], self._folder
        if folder != taken[0]:
            self._folder = taken = (folder, self.takes_folder(folder))
        return taken[1] and self.wants(path)

    def takes_folder(self, path: str) -> bool:
        """Whether a walk of the root would enter the folder `path`; the root itself is ""."""
        if not self._excludes_any or not path:
            return True
        slashes = [at for at, letter in enumerate(path) if letter == "/"]
        return not any(self.excludes_folder(path[:at]) for at in (*slashes, len(path)))

    def excludes_folder(self, path: str) -> bool:
        """Whether nothing below the folder `path` can be wanted, so that it need not be entered."""
        return self.excludes(f"{path}/") or self.excludes(path)


def _compile(patterns: Sequence[str], *, dots: bool = False) -> re.Pattern[str]:
    """`dots`: `*` also matches a leading dot."""
    from wcmatch import glob  # here, since decoders import this module and need no patterns

    if not patterns:
        return re.compile(r"(?!)")
    flags = glob.GLOBSTAR | glob.IGNORECASE | glob.BRACE | glob.FORCEUNIX
    try:
        regexes, _ = glob.translate(list(patterns), flags=flags | (glob.DOTGLOB if dots else 0))
        return re.compile("|".join(f"(?:{regex})" for regex in regexes))
    except Exception as error:  # the error for too many patterns has no public name
        raise ValueError(f"cannot use these patterns: {error}") from None
