"""Which files of a root are images: its include and exclude patterns, ignoring case."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wcmatch import glob

_FLAGS = glob.GLOBSTAR | glob.IGNORECASE | glob.BRACE | glob.FORCEUNIX


class Globs:
    """Matches paths in catalog form, relative to the root. As in a shell, `*` does not match a leading dot."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str] = ()) -> None:
        self._include = _compile(include, 0)
        # An exclude pattern also matches names that begin with a dot.
        self._exclude = _compile(exclude, glob.DOTGLOB)
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


def _compile(patterns: Sequence[str], flags: int) -> re.Pattern[str]:
    if not patterns:
        return re.compile(r"(?!)")
    regexes, _ = glob.translate(list(patterns), flags=_FLAGS | flags)
    return re.compile("|".join(f"(?:{regex})" for regex in regexes))
