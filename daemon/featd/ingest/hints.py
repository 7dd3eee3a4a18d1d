"""What the watch reports: paths and folders to check, merged and limited in number. Its threads put, the loop takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

MAX_PATHS = 50_000
MAX_FOLDERS = 1_000


def folder_of(path: bytes) -> bytes:
    """The folder that `path` is in, relative to the root as it is."""
    return path.rpartition(b"/")[0]


class Hint(StrEnum):
    """What happened to a path. The file is checked in any case; a hint only says how soon it may be complete."""

    CREATED = "created"  # perhaps still being written
    CLOSED = "closed"  # written and closed, or moved here: complete
    ATTRIB = "attrib"  # its times were set
    GONE = "gone"  # deleted or moved away; perhaps another is there


class Trouble(StrEnum):
    """Why events may have been lost, in words for people. Each is answered by a scan of the root."""

    OVERFLOW = "events were lost: the kernel's inotify queue was full"  # the watch goes on
    OUT_OF_WATCHES = "out of inotify watches (raise fs.inotify.max_user_watches)"  # a part is not watched
    UNMOUNTED = "a disk beneath the root was unmounted"  # and its watches are gone
    HANDLER = "an event could not be handled"
    LOST = "the root was deleted or moved"


@dataclass(slots=True)
class Taken:
    """What was reported since the last call."""

    paths: dict[bytes, Hint] = field(default_factory=dict)
    folders: dict[bytes, Hint] = field(default_factory=dict)
    troubles: dict[Trouble, int] = field(default_factory=dict)


class Hints:
    """Paths are relative to the root; b"" is the root itself, that is: everything."""

    def __init__(
        self, wake: Callable[[], None], *, max_paths: int = MAX_PATHS, max_folders: int = MAX_FOLDERS
    ) -> None:
        self._wake = wake
        self._max_paths = max_paths
        self._max_folders = max_folders
        self._lock = threading.Lock()
        self._taken = Taken()

    def put(self, path: bytes, hint: Hint) -> None:
        """Check this file. Where too many wait, check its folder instead."""
        with self._lock:
            paths = self._taken.paths
            before = paths.get(path)
            if before is None and len(paths) >= self._max_paths:
                self._add_folder(folder_of(path), hint)
            elif hint is not Hint.ATTRIB or before not in (Hint.CREATED, Hint.CLOSED):
                paths[path] = hint
        self._wake()

    def doubt(self, folder: bytes, hint: Hint = Hint.CREATED) -> None:
        """Check this folder and all beneath it. Where too many wait, check everything."""
        with self._lock:
            self._add_folder(folder, hint)
        self._wake()

    def trouble(self, trouble: Trouble) -> None:
        with self._lock:
            self._taken.troubles[trouble] = self._taken.troubles.get(trouble, 0) + 1
        self._wake()

    def _add_folder(self, folder: bytes, hint: Hint) -> None:
        folders = self._taken.folders
        if len(folders) >= self._max_folders or not folder:
            folders.clear()
            folders[b""] = hint
        elif b"" not in folders:
            folders[folder] = hint

    def take(self) -> Taken:
        with self._lock:
            taken, self._taken = self._taken, Taken()
        return taken
