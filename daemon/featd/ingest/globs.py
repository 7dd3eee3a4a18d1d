"""Which files of a root are images: its include and exclude patterns, without regard to case."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wcmatch import glob

_FLAGS = glob.GLOBSTAR | glob.IGNORECASE | glob.BRACE | glob.FORCEUNIX


class Globs:
    """Matches paths in catalog form, relative to the root. As in a shell, `*` does not match a leading dot."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str] = ()) -> None:
        self._include = _compile(include, 0)
        # What is excluded is excluded with its dot files.
        self._exclude = _compile(exclude, glob.DOTGLOB)

    def wants(self, path: str) -> bool:
        """Whether a file of this path is an image of the root."""
        return self._include.match(path) is not None and self._exclude.match(path) is None

    def excludes_folder(self, path: str) -> bool:
        """Whether nothing below the folder `path` can be wanted, so that it need not be walked."""
        return self._exclude.match(f"{path}/") is not None or self._exclude.match(path) is not None


def _compile(patterns: Sequence[str], flags: int) -> re.Pattern[str]:
    if not patterns:
        return re.compile(r"(?!)")
    regexes, _ = glob.translate(list(patterns), flags=_FLAGS | flags)
    return re.compile("|".join(f"(?:{regex})" for regex in regexes))
