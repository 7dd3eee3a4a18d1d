"""A root is a watched folder: whether it is there and can be believed, and which of its files are images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path


class RootState(StrEnum):
    """Whether a root can be believed. Only `online` lets rows become gone, or be claimed."""

    ONLINE = "online"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"  # what an unmounted disk leaves: an empty mount point


def root_state(root: Path) -> RootState:
    """Check a root now."""
    try:
        with os.scandir(root) as entries:
            return RootState.ONLINE if next(entries, None) is not None else RootState.EMPTY
    except (FileNotFoundError, NotADirectoryError):
        return RootState.MISSING
    except OSError:
        return RootState.UNREADABLE


class Globs:
    """A root's patterns, ignoring case. They match paths in catalog form, relative to the root. As in a shell, `*` does
    not match a leading dot, but in an exclude pattern it does."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str] = ()) -> None:
        """ValueError where a pattern expands to too many, as `{1..100000}` does."""
        self._include = _compile(include)
        self._exclude = _compile(exclude, dots=True)
        self._excludes_any = bool(exclude)

    def wants(self, path: str) -> bool:
        """Whether a file of this path is an image of the root."""
        return self._include.match(path) is not None and self._exclude.match(path) is None

    def takes(self, path: str) -> bool:
        """Whether a walk of the root would reach the file `path`, and want it."""
        return self.wants(path) and self.takes_folder(path.rpartition("/")[0])

    def takes_folder(self, path: str) -> bool:
        """Whether a walk of the root would enter the folder `path`; the root itself is ""."""
        if not self._excludes_any or not path:
            return True
        slashes = [at for at, letter in enumerate(path) if letter == "/"]
        return not any(self.excludes_folder(path[:at]) for at in (*slashes, len(path)))

    def excludes_folder(self, path: str) -> bool:
        """Whether nothing below the folder `path` can be wanted, so that it need not be entered."""
        return self._exclude.match(f"{path}/") is not None or self._exclude.match(path) is not None


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
