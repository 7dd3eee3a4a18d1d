"""What became of the rows of a script's files: counts, and each name that was not placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from featd.adopt.script_file import ScriptFile, spelled
from featd.paths import to_catalog


class Why(StrEnum):
    """Why a row was not taken over."""

    NOT_FOUND = "not found"  # no image of the root has this name
    IN_DOUBT = "in doubt"  # several have it, or several different vectors have this name
    NEWER = "newer"  # the file changed after the vectors were made
    LEFT_OUT = "left out"  # the configuration leaves the file out, or it is a link or no regular file
    NO_PATH = "not a path"  # empty, too long, with `..` or a NUL
    NOT_FINITE = "not finite"  # the vector has NaN or infinity, as the store keeps it
    UNREADABLE = "unreadable"  # the file cannot be read now, or changed meanwhile
    IN_WORK = "in work"  # a worker has the image in hand
    FAILED = "failed"  # featd has tried the image, and it failed


@dataclass(frozen=True, slots=True)
class LeftRow:
    """A row that was not taken over."""

    file: str
    row: int
    name: str
    """In catalog form."""
    why: Why
    detail: str


@dataclass
class Outcome:
    """`adopted` vectors were taken over; for `there` images featd had one already; `same` rows name an image again with
    an equal vector. `tell` is told of each row that is left."""

    adopted: int = 0
    there: int = 0
    same: int = 0
    left: Counter[Why] = field(default_factory=Counter)
    tell: Callable[[LeftRow], None] = lambda row: None

    def leave(self, file: ScriptFile, row: int, name: bytes, why: Why, detail: str = "") -> None:
        """Count a row that is not taken over."""
        self.left[why] += 1
        self.tell(LeftRow(spelled(file.path), row, to_catalog(name), why, detail))
