"""Errors of reading that may be the disk's fault: an image is charged only once another file of its root was read
after its error. Until then it backs off, and nothing is counted."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from featd import clock, logs
from featd.paths import from_catalog, open_beneath
from featd.states import ClaimedImage, Failure, Kind

log = logs.get("worker")

DOUBTFUL = frozenset({Kind.READ_IO, Kind.READ_DENIED, Kind.READ_MISSING, Kind.DECODE_TIMEOUT})
WAIT_SECONDS = 1.0
"""How long failures are collected before a file of their root is read as a test."""
PROBE_SECONDS = 5.0
PROBED_BYTES = 65_536


class ReadErrors:
    """The failures in doubt. `put` takes those that are decided; `find` names a done file of a root, or None."""

    def __init__(
        self,
        put: Callable[[Failure], None],
        find: Callable[[str], str | None],
        places: Mapping[str, str] | None = None,
    ) -> None:
        """places: what the catalog calls a root -> its folder; by default each is called by that."""
        self._put = put
        self._find = find
        self._places = places or {}
        self._waiting: dict[str, list[Failure]] = {}
        self._since = 0.0
        self._last_read: dict[str, str] = {}
        self.rounds: dict[str, int] = {}
        """Root -> rounds in which no file of it could be read."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, failure: Failure) -> None:
        """A file could not be read."""
        if not self._waiting:
            self._since = clock.monotonic()
        self._waiting.setdefault(failure.image.root, []).append(failure)

    def read(self, image: ClaimedImage) -> None:
        """A file was read; not necessarily after the failures that wait, for decoders answer in any order."""
        self._last_read[image.root] = image.path
        if image.root in self.rounds and image.root not in self._waiting:
            self._recovered(image.root)

    def step(self) -> None:
        """Decide what has waited long enough."""
        if self._waiting and clock.monotonic() - self._since >= WAIT_SECONDS:
            for root in list(self._waiting):
                self._decide(root, counted=self._can_read(root))

    def _can_read(self, root: str) -> bool:
        place = self._places.get(root, root)
        path = self._last_read.pop(root, None)
        if path is None or not can_read(place, path):
            path = self._find(root)
            if path is None or not can_read(place, path):
                return False
        self._last_read[root] = path
        return True

    def _recovered(self, root: str) -> None:
        del self.rounds[root]
        log.info("root_readable", "files of this root can be read again", root=root)

    def _decide(self, root: str, *, counted: bool) -> None:
        failures = self._waiting.pop(root)
        if counted and root in self.rounds:
            self._recovered(root)
        if not counted:
            if root not in self.rounds:
                log.warning(
                    "root_in_doubt",
                    "no file of this root can be read; its images are tried again later, and nothing is counted",
                    root=root,
                    error=failures[-1].message,
                )
            self.rounds[root] = self.rounds.get(root, 0) + 1
        for failure in failures:
            self._put(replace(failure, counted=counted))


def can_read(root: str, path: str) -> bool:
    """Whether the disk gives the first bytes of a file beneath the folder `root` within PROBE_SECONDS: a dead one may
    block for ever."""
    answer: list[bool] = []

    def look() -> None:
        for follow_symlinks in (False, True):  # the second needs a kernel with openat2
            with contextlib.suppress(OSError):
                _read_some(root, path, follow_symlinks)
                answer.append(True)
                return

    thread = threading.Thread(target=look, name="probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answer)


def _read_some(root: str, path: str, follow_symlinks: bool) -> None:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(root_fd, from_catalog(path), follow_symlinks=follow_symlinks)
    finally:
        os.close(root_fd)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is cached says nothing of the disk
        os.read(fd, PROBED_BYTES)
    finally:
        os.close(fd)
