"""The watch of one root. It only puts hints where to look, and may fail at any time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from watchdog import events

from featd import logs
from featd.config import RootConfig
from featd.ingest.hints import Hint, Hints, Trouble
from featd.ingest.inotify import RootObserver
from featd.paths import to_catalog
from featd.roots import Globs

log = logs.get("ingest")

# fmt: off
REMOTE_FILE_SYSTEMS = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs",
    "fuse.goofys", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs",
))
# fmt: on
"""File systems on which other hosts write without inotify reporting it."""


_HINTS = {
    events.EVENT_TYPE_CREATED: Hint.CREATED,
    events.EVENT_TYPE_CLOSED: Hint.CLOSED,
    events.EVENT_TYPE_ATTRIB: Hint.ATTRIB,
    events.EVENT_TYPE_DELETED: Hint.GONE,
    events.EVENT_TYPE_MOVED: Hint.GONE,
}
"""What an event says of the file or folder that it names first."""


class Watch:
    """Opens, checks and closes the observer of one root. `problem`: why the root is only scanned."""

    def __init__(self, root: RootConfig, hints: Hints) -> None:
        self._root = root
        self._hints = hints
        self._globs = Globs(root.include, root.exclude)
        self._observer: RootObserver | None = None
        self._identity: tuple[str, int, int] | None = None
        self.problem: str | None = None

    @property
    def is_open(self) -> bool:
        return self._observer is not None

    def open(self) -> bool:
        """Watch the root as it is now; whether that succeeded. Takes a while in a large tree."""
        self.close()
        self.problem = None
        try:
            identity = identify(self._root.path)
            if (kind := file_system(identity[0])) in REMOTE_FILE_SYSTEMS:
                self.problem = f"{kind} does not report what other hosts write"
                return False
            # A root may be a link, which is followed here, once; links beneath it are not.
            raw = os.fsencode(identity[0])
            skip = len(raw.rstrip(b"/")) + 1
            observer = RootObserver(
                self._hints.trouble, lambda folder: self._globs.excludes_folder(to_catalog(folder[skip:]))
            )
        except OSError as error:
            self.problem = explain(error)
            return False
        self._observer = observer
        self._identity = identity
        try:
            observer.watch(raw, Handler(raw, self._root, self._globs, self._hints))
        except OSError as error:
            self.close()
            self.problem = explain(error)
            return False
        return True

    def trouble(self) -> str | None:
        """Why the watch does not work any more, or None."""
        if self._observer is None:
            return None
        try:
            if identify(self._root.path) != self._identity:
                return "another folder is in its place"
        except OSError as error:
            return f"the root is not there ({error.strerror})"
        if not self._observer.at_work():
            return "the threads of the watch ended"
        return None

    def close(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            try:
                observer.close()
            except Exception as error:
                log.warning(
                    "watch_not_closed",
                    "cannot close a watch completely; going on without it",
                    root=self._root.key,
                    error=repr(error),
                )


class Handler(events.FileSystemEventHandler):
    """Turns watchdog's events into hints, in watchdog's thread, which an error must not end."""

    def __init__(self, root: bytes, config: RootConfig, globs: Globs, hints: Hints) -> None:
        self._root = root.rstrip(b"/")
        self._follows_links = config.follow_symlinks
        self._globs = globs
        self._hints = hints

    def dispatch(self, event: events.FileSystemEvent) -> None:
        try:
            self.hear(event)
        except Exception:
            self._hints.trouble(Trouble.HANDLER)

    def hear(self, event: events.FileSystemEvent) -> None:
        source, target = self._relative(event.src_path), self._relative(event.dest_path)
        if source == b"":
            self._hints.trouble(Trouble.LOST)
        elif self._follows_links:
            # The same folder may be known under the name of a link: only a scan of the whole root finds out.
            self._hints.doubt(b"")
        elif event.is_directory:
            for folder, what in ((source, _HINTS[event.event_type]), (target, Hint.CREATED)):
                if folder is not None and self._globs.takes_folder(to_catalog(folder)):
                    self._hints.doubt(folder, what)
        elif (hint := _HINTS.get(event.event_type)) is not None:
            self._put(source, hint)
            self._put(target, Hint.CLOSED)  # of a move

    def _put(self, path: bytes | None, hint: Hint) -> None:
        if path is not None and self._globs.takes(to_catalog(path)):
            self._hints.put(path, hint)

    def _relative(self, path: str | bytes) -> bytes | None:
        """The path below the root; b"" for the root itself; None where there is none."""
        if not path:
            return None
        raw = os.fsencode(path)
        if raw == self._root:
            return b""
        if not raw.startswith(self._root + b"/"):
            raise ValueError(f"not beneath {self._root!r}: {raw!r}")
        return raw[len(self._root) + 1 :]


def identify(root: Path) -> tuple[str, int, int]:
    """The identity of a root's folder: another disk, or a new folder of the same name, is another one."""
    real = os.path.realpath(root)
    found = Path(real).stat()
    return real, found.st_dev, found.st_ino


def file_system(path: str) -> str:
    """The type of the file system that `path` is on, as the kernel names it; empty where that is unknown."""
    try:
        device = Path(path).stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in reversed(lines):
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return ""


def explain(error: OSError) -> str:
    """Why a root cannot be watched, and what raises the limit."""
    match error.errno:
        case errno.ENOSPC:
            return "out of inotify watches (raise fs.inotify.max_user_watches)"
        case errno.EMFILE:
            return "out of inotify instances (raise fs.inotify.max_user_instances)"
        case _:
            return f"cannot be watched: {error.strerror}"
