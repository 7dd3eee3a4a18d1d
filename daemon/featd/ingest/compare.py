"""The files of a root against the catalog's rows of them, both in order of path. What is alike, as nearly all is in a
rescan, is compared as plain tuples, many at once, and costs no more than that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, enqueue
from featd.catalog.enqueue import FileRow
from featd.ingest.walk import PORTION_FILES
from featd.states import PRIORITY_BACKLOG

BATCH_FILES = 5000
"""Files that are compared at once, and files in one transaction."""
SLICE_SECONDS = 0.2
"""How long one step of a scan takes; files that arrive meanwhile wait for it."""

_PATH = itemgetter(0)


@dataclass(slots=True)
class Stretch:
    """What differs behind the stretch before this one and not behind the path `upto` (None: to the end)."""

    upto: str | None
    rows: int = 0
    """Rows in it that are not gone."""
    new: list[FileRow] = field(default_factory=list)
    """Files without such a row."""
    changed: list[FileRow] = field(default_factory=list)
    """Files that differ from their row, or must be looked at for another reason."""
    missing: list[str] = field(default_factory=list)
    """Paths of rows whose files the walk has not met: perhaps they could not be reached."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the files of a root, or of its `folder` (in catalog form), are compared with their rows.

    priority: a pending row of a lower one is a change. everything: so is any file. settle_seconds: so is a file that
    was written no longer ago, for it may still be written.
    """

    catalog: sa.Engine
    root: str
    folder: str = ""
    priority: int = PRIORITY_BACKLOG
    everything: bool = False
    settle_seconds: float = 0.0

    def any_known(self) -> bool:
        """Whether there is a row that is not gone."""
        return bool(self._known("", None, 1))

    def stretches(
        self, portions: Iterable[Sequence[FileRow]], after: str, upto: str | None
    ) -> Iterator[Stretch | None]:
        """Compare `portions`, all files behind `after` and not behind `upto` in order of path, with the rows there.

        None where nothing is to be told after SLICE_SECONDS.
        """
        found: list[FileRow] = []
        until = clock.monotonic() + SLICE_SECONDS
        for portion in portions:
            found += portion
            if len(found) > BATCH_FILES - PORTION_FILES or clock.monotonic() > until:
                if found:
                    yield from self._compare(found, after, found[-1][0])
                    after, found = found[-1][0], []
                else:
                    yield None
                until = clock.monotonic() + SLICE_SECONDS
        yield from self._compare(found, after, upto)

    def _compare(self, found: Sequence[FileRow], after: str, upto: str | None) -> Iterator[Stretch]:
        more = True
        while more:
            rows = self._known(after, upto, 2 * BATCH_FILES)
            if more := len(rows) == 2 * BATCH_FILES:  # many files have vanished here
                after = rows[-1][0]
                end = bisect_right(found, after, key=_PATH)
                yield self._difference(found[:end], rows, after)
                found = found[end:]
            else:
                yield self._difference(found, rows, upto)

    def _known(self, after: str, upto: str | None, limit: int) -> list[tuple[Any, ...]]:
        with connect.reading(self.catalog) as conn:
            return enqueue.known_between(
                conn, self.root, after, upto, limit, folder=self.folder, priority=self.priority
            )

    def _difference(
        self, found: Sequence[FileRow], rows: Sequence[tuple[Any, ...]], upto: str | None
    ) -> Stretch:
        stretch = Stretch(upto, len(rows))
        if not rows:
            stretch.new = list(found)
        elif found == rows:
            stretch.changed = list(found) if self.everything else self.young(found)
        else:
            known, same = set(map(_PATH, rows)), set(rows)
            young = set(self.young(found))
            stretch.new = [file for file in found if file[0] not in known]
            stretch.changed = [
                file
                for file in found
                if file[0] in known and (file not in same or self.everything or file in young)
            ]
            stretch.missing = sorted(known.difference(map(_PATH, found)))
        return stretch

    def young(self, found: Sequence[FileRow]) -> list[FileRow]:
        """Those that were written a moment ago. A time in the future is no reason to wait longer than that."""
        now, settle = clock.utcnow().timestamp() * 1e9, self.settle_seconds * 1e9
        return [file for file in found if now - settle < file[2] < now + settle]
