"""watchdog's inotify observer for one root, mended where it keeps silent (out of watches, folders that may not
be watched, disks that go away), goes on too long (folders moved out of the root) or goes round in circles
(overflow in a large tree). Bound to the inside of watchdog 7.1.
"""
# ruff: noqa: PTH112, PTH114, PTH118 -- paths are bytes here, pathlib's are text

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watchdog import events
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter, InotifyWatchGroup
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)
from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent, PathedInotifyEvent

from featd.ingest.hints import Trouble

OnTrouble = Callable[[Trouble], None]

EVENTS: list[type[events.FileSystemEvent]] = [
    events.FileCreatedEvent,
    events.FileClosedEvent,
    events.FileAttribEvent,
    events.FileMovedEvent,
    events.FileDeletedEvent,
    events.DirCreatedEvent,
    events.DirMovedEvent,
    events.DirDeletedEvent,
]
"""What is asked of the kernel. Writes are not: a file that is written is closed in the end."""


class RootObserver(BaseObserver):
    """Observes one root with an inotify instance of its own: its troubles are no other root's."""

    def __init__(self, on_trouble: OnTrouble, excluded: Callable[[bytes], bool]) -> None:
        self._fd = _Instance(on_trouble)
        super().__init__(_Emitter, inotify_fd=self._fd, excluded=excluded)
        self._fd.start()

    def watch(self, root: bytes, handler: events.FileSystemEventHandler) -> None:
        """Begin. OSError where not even the root can be watched; close it then all the same."""
        self.schedule(handler, os.fsdecode(root), recursive=True, event_filter=EVENTS)
        self.start()

    def at_work(self) -> bool:
        """Whether every thread lives and the root itself still is watched."""
        emitters = list(self.emitters)
        return (
            self.is_alive()
            and self._fd.is_alive()
            and bool(emitters)
            and all(isinstance(one, _Emitter) and one.is_alive() and one.watches_root() for one in emitters)
        )

    def close(self) -> None:
        """End all threads and give every watch back, whatever state they are in."""
        failed: Exception | None = None
        for thread in (self, self._fd):
            try:
                thread.stop()
            except Exception as error:  # of watchdog's own book-keeping: the descriptor must be closed yet
                failed = error
            if thread.is_alive():
                thread.join(5.0)
        if failed is not None:
            raise failed


class _Instance(InotifyFD):
    """An inotify instance that tells what it could not watch and what it lost."""

    def __init__(self, on_trouble: OnTrouble) -> None:
        super().__init__()
        self._on_trouble = on_trouble

    def handle_event(self, event: InotifyEvent) -> None:
        super().handle_event(event)
        # After the watches were rebuilt: a scan that began before could miss what came in between.
        if event.is_queue_overflow:
            self._on_trouble(Trouble.OVERFLOW)
        if event.mask & InotifyConstants.IN_UNMOUNT:
            self._on_trouble(Trouble.UNMOUNTED)

    def _add_callback(
        self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId
    ) -> WatchDescriptor:
        try:
            watch = self._get_or_create_watch(path, mask)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._on_trouble(Trouble.OUT_OF_WATCHES)
            raise
        if watch.wd == -1:  # watchdog takes EACCES for a watch; the scan tells of such a folder
            self._watch_for_wd.pop(watch.wd, None)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        # A folder that was moved out and comes back still has its watch: that is nothing to warn of.
        watch.callbacks[id_] = callback
        return watch.wd


def _excludes_nothing(_folder: bytes) -> bool:
    return False


@dataclass
class _Group(InotifyWatchGroup):
    """The watches of one root. Excluded folders have none."""

    excluded: Callable[[bytes], bool] = _excludes_nothing

    def watches_root(self) -> bool:
        return self.path in self._active_callbacks_by_path

    def on_queue_overflow(self) -> None:
        """Watch what was made while events were lost.

        watchdog would take all watches away first, and each makes an event: in a tree of more folders than the
        queue holds, one overflow would lead to the next for ever.
        """
        with self._lock:
            if not self.is_active:
                return
            self._move_event_grouper.discard_pending_events()
            before = set(self._active_callbacks_by_watch)
            self._active_callbacks_by_watch.clear()
            self._active_callbacks_by_path.clear()
            with contextlib.suppress(OSError):  # the root is away: whoever asks `watches_root` will see
                self._add_all_callbacks(self.path)
            stale = before - self._active_callbacks_by_watch.keys()
            self._inotify_fd.remove_callbacks([(wd, self._id) for wd in stale])

    def forget(self, folder: bytes) -> None:
        """`folder` was moved out of the root: give back its watches, which would fire under its old path."""
        with self._lock:
            beneath = folder + b"/"
            stale = [
                wd
                for wd, path in self._active_callbacks_by_watch.items()
                if path == folder or path.startswith(beneath)
            ]
            self._remove_callbacks(stale)
            if os.path.isdir(folder):  # another one stands there by now
                self._add_all_callbacks(folder)

    def _add_all_callbacks(self, path: bytes) -> None:
        if path != self.path and self.excluded(path):
            return
        self._add_callback(path)
        for folder, names, _ in os.walk(path):
            names[:] = [name for name in names if not self.excluded(os.path.join(folder, name))]
            for name in names:
                below = os.path.join(folder, name)
                if not os.path.islink(below):
                    self._add_callback(below)

    def _remove_watch_internally(self, wd: WatchDescriptor) -> None:
        # Two watches may have had one path in turn: only what is this one's is taken out.
        path = self._active_callbacks_by_watch.pop(wd, None)
        if path is not None and self._active_callbacks_by_path.get(path) == wd:
            del self._active_callbacks_by_path[path]


class _Emitter(InotifyFullEmitter):
    def __init__(self, *arguments: Any, excluded: Callable[[bytes], bool], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._excluded = excluded

    def on_thread_start(self) -> None:
        self._inotify = _Group(
            self._inotify_fd,
            os.fsencode(self.watch.path),
            is_recursive=True,
            event_mask=self.get_event_mask_from_filter(),
            excluded=self._excluded,
        )

    def watches_root(self) -> bool:
        group = self._inotify
        return isinstance(group, _Group) and group.watches_root()

    def get_event_mask_from_filter(self) -> Mask:
        # watchdog does not ask for what FileAttribEvent is made of.
        return Mask(super().get_event_mask_from_filter() | InotifyConstants.IN_ATTRIB)

    def queue_event(self, event: events.FileSystemEvent) -> None:
        # What watchdog makes up about files in a moved folder is found by the scan of that folder.
        if not event.is_synthetic:
            super().queue_event(event)

    def build_and_queue_event(self, event: GroupedInotifyEvent, *, full_events: bool = True) -> None:
        group = self._inotify
        match event:
            case PathedInotifyEvent(ev, path) if ev.is_moved_from and ev.is_directory:
                if isinstance(group, _Group):
                    group.forget(path)
            case _:
                pass
        super().build_and_queue_event(event, full_events=full_events)
