"""Content checks: files whose ctime moved alone are read again, and compared with what their vectors were made from.

An edit can keep size and mtime; a chmod, a chown or a new link moves the ctime as well. Only the content tells them
apart. The images stay done meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, enqueue
from featd.catalog.enqueue import FoundFile
from featd.config import RootConfig
from featd.errors import ImageError
from featd.images.read import read_image
from featd.ingest.walk import found_file
from featd.paths import from_catalog
from featd.states import Kind

MAX_FILES = 20_000
"""Files in doubt that are kept; the next scan finds the others again."""
SLICE_SECONDS = 0.2
"""How long one step reads."""
PAUSES = 3
"""A step is followed by a pause of so many times its length: whatever else reads this disk comes first."""
AGAIN_SECONDS = 1.0
"""Until a claimed image is looked at again."""


class ContentChecks:
    """The files of one root that are in doubt."""

    def __init__(self, catalog: sa.Engine, root: RootConfig, *, hurry: bool) -> None:
        """hurry: without pauses, where a drain waits for the end."""
        self._catalog = catalog
        self._root = root
        self._pauses = 0 if hurry else PAUSES
        self._files: dict[str, FoundFile] = {}
        self.more = False
        """Whether there were too many, so that a scan must find the others again."""
        self._due = 0.0

    def __bool__(self) -> bool:
        return bool(self._files) or self.more

    def add(self, files: Sequence[FoundFile]) -> None:
        for file in files:
            if len(self._files) < MAX_FILES or file.path in self._files:
                self._files[file.path] = file
            else:
                self.more = True

    def next_due(self) -> float | None:
        return self._due if self._files else None

    def step(self, now: float) -> int:
        """Read some of the files where that is due; returns how many have other content and are pending now."""
        if not self._files or now < self._due:
            return 0
        began = clock.monotonic()
        read: list[tuple[FoundFile, str | None]] = []
        first = True
        while self._files and (first or clock.monotonic() < began + SLICE_SECONDS):
            first = False
            file = self._files.pop(next(iter(self._files)))
            with contextlib.suppress(OSError, ImageError):  # an event or the next scan finds it again
                read.append((file, self._read(file)))
        if not read:
            return 0
        try:
            changed, claimed = connect.transact(self._catalog, enqueue.compare, self._root.key, read)
        except BaseException:
            self.add([file for file, _ in read])
            raise
        after = clock.monotonic()
        self._due = after + (after - began) * self._pauses
        if claimed:
            self.add(claimed)
            self._due = max(self._due, after + AGAIN_SECONDS)
        return changed

    def _read(self, file: FoundFile) -> str | None:
        """The hash of the file's content; None where it may not be read. OSError or ImageError where it is not the file
        in doubt any more, or cannot be read."""
        path = from_catalog(file.path)
        follow = self._root.follow_symlinks
        root_fd = os.open(self._root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            image = read_image(root_fd, path, file.size, file.mtime_ns, follow_symlinks=follow)
            found = os.stat(path, dir_fd=root_fd, follow_symlinks=follow)
        except ImageError as error:
            if error.kind is Kind.READ_DENIED:
                return None
            raise
        finally:
            os.close(root_fd)
        if found_file(file.path, found) != file:
            raise ImageError(Kind.READ_CHANGED, "the file changed while it was read")
        return image.content
