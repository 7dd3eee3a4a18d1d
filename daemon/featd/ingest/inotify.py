"""The inotify watch of one root: an emitter of events for watchdog's observer, with an inotify instance of its own.

It watches every folder of the root that is not excluded, and tells what may have kept events from it.
"""
# ruff: noqa: PTH118 -- paths are bytes here, pathlib's are text

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

from inotify_simple import Event, INotify, flags
from watchdog import events
from watchdog.observers.api import BaseObserver, EventEmitter, EventQueue, ObservedWatch

from featd.ingest.hints import Trouble

OnTrouble = Callable[[Trouble], None]

MASK = (
    flags.CREATE
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
    | flags.EXCL_UNLINK
)
"""What the kernel is asked for. Not for writes: a file that is written is closed in the end."""
GONE = flags.DELETE | flags.MOVED_FROM


class RootObserver(BaseObserver):
    """Observes one root, so that its troubles do not affect other roots."""

    def __init__(self, on_trouble: OnTrouble, excluded: Callable[[bytes], bool]) -> None:
        super().__init__(TreeEmitter, on_trouble=on_trouble, excluded=excluded)

    def watch(self, root: bytes, handler: events.FileSystemEventHandler) -> None:
        """Begin. OSError where not even the root itself can be watched; `close` is needed even then."""
        self.schedule(handler, os.fsdecode(root), recursive=True)
        self.start()

    def at_work(self) -> bool:
        """Whether every thread lives and the root itself is still watched."""
        emitters = list(self.emitters)
        return (
            self.is_alive()
            and bool(emitters)
            and all(
                isinstance(one, TreeEmitter) and one.is_alive() and one.watches_root() for one in emitters
            )
        )

    def close(self) -> None:
        """End all threads and give every watch back, whatever state they are in."""
        self.stop()
        if self.is_alive():
            self.join(5.0)


class TreeEmitter(EventEmitter):
    """Turns inotify's events into watchdog's. A moved file or folder is one that went and one that came."""

    def __init__(
        self,
        event_queue: EventQueue,
        watch: ObservedWatch,
        *,
        on_trouble: OnTrouble,
        excluded: Callable[[bytes], bool],
        **options: Any,
    ) -> None:
        super().__init__(event_queue, watch, **options)
        self._root = os.fsencode(watch.path)
        self._on_trouble = on_trouble
        self._excluded = excluded
        self._inotify = INotify()
        self._paths: dict[int, bytes] = {}  # by watch descriptor
        self._watches: dict[bytes, int] = {}
        self._closed: set[bytes] = set()
        """Folders that are closed: what comes meanwhile cannot be seen, even where they are watched."""

    def on_thread_start(self) -> None:
        self._add(self._root)
        self._watch_tree(self._root)

    def on_thread_stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed already
            self._inotify.rm_watch(next(iter(self._paths), -1))  # makes an event, which ends the wait
        if not self.is_alive():
            self._inotify.close()

    def run(self) -> None:
        with self._inotify:
            super().run()

    def watches_root(self) -> bool:
        return self._root in self._watches

    def queue_events(self, timeout: float) -> None:
        for event in self._inotify.read(int(timeout * 1000)):
            self.handle(event)

    def handle(self, event: Event) -> None:
        """One event of the kernel."""
        if event.mask & flags.Q_OVERFLOW:
            self._watch_anew()
            self._on_trouble(Trouble.OVERFLOW)
            return
        folder = self._paths.get(event.wd)
        if folder is None:
            return  # of a folder that was moved out
        if event.mask & flags.UNMOUNT:
            self._on_trouble(Trouble.UNMOUNTED)
        if event.mask & flags.IGNORED:
            self._forget(folder)
        elif event.name:
            self._handle_entry(os.path.join(folder, os.fsencode(event.name)), event.mask)
        elif folder == self._root and event.mask & (flags.DELETE_SELF | flags.MOVE_SELF):
            self.queue_event(events.DirDeletedEvent(folder))

    def _handle_entry(self, path: bytes, mask: int) -> None:
        """Something happened to a file or folder in a watched folder."""
        if mask & flags.ISDIR:
            if mask & GONE:
                self._forget_tree(path)  # where it was moved to, its events would come under its old path
                self.queue_event(events.DirDeletedEvent(path))
            elif mask & (flags.CREATE | flags.MOVED_TO):
                self._watch_tree(path)  # first, so that the scan of it that follows misses nothing
                self.queue_event(events.DirCreatedEvent(path))
            elif mask & flags.ATTRIB and not os.access(path, os.R_OK | os.X_OK):
                self._closed.add(path)
            elif mask & flags.ATTRIB and (path in self._closed or path not in self._watches):
                self._closed.discard(path)
                self._watch_tree(path)
                self.queue_event(events.DirCreatedEvent(path))
        elif mask & GONE:
            self.queue_event(events.FileDeletedEvent(path))
        elif mask & flags.MOVED_TO:
            self.queue_event(events.FileMovedEvent(b"", path))
        elif mask & flags.CREATE:
            self.queue_event(events.FileCreatedEvent(path))
        elif mask & flags.CLOSE_WRITE:
            self.queue_event(events.FileClosedEvent(path))
        elif mask & flags.ATTRIB:
            self.queue_event(events.FileAttribEvent(path))

    # Watches

    def _add(self, folder: bytes) -> None:
        """Watch one folder. OSError."""
        wd = self._inotify.add_watch(folder, MASK)
        # The kernel has one watch for a folder, under whatever path it was found first.
        if (before := self._paths.get(wd)) is not None and self._watches.get(before) == wd:
            del self._watches[before]
        self._paths[wd], self._watches[folder] = folder, wd

    def _watch_tree(self, top: bytes) -> None:
        """Watch a folder and those beneath it, but for what is excluded. A folder that cannot be read is left to the
        scan, which reports it."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            if folder != self._root and self._excluded(folder):
                continue
            if not os.access(folder, os.R_OK | os.X_OK):
                self._closed.add(folder)
            try:
                self._add(folder)
                with os.scandir(folder) as entries:
                    waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self._on_trouble(Trouble.OUT_OF_WATCHES)
                    return

    def _watch_anew(self) -> None:
        """After lost events: watch what was made meanwhile, and forget what is gone. No watch is taken away before:
        each would make an event, and in a large tree one overflow would lead to the next."""
        before = self._paths
        self._paths, self._watches = {}, {}
        self._watch_tree(self._root)
        for wd in before.keys() - self._paths.keys():
            self._remove(wd)

    def _forget_tree(self, top: bytes) -> None:
        beneath = top + b"/"
        for folder, wd in list(self._watches.items()):
            if folder == top or folder.startswith(beneath):
                self._forget(folder)
                self._remove(wd)

    def _forget(self, folder: bytes) -> None:
        wd = self._watches.pop(folder, None)
        if wd is not None:
            self._paths.pop(wd, None)

    def _remove(self, wd: int) -> None:
        with contextlib.suppress(OSError):  # the folder is deleted, and with it its watch
            self._inotify.rm_watch(wd)
