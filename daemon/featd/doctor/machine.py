"""Checks of the machine: limits of the kernel and of this user, and room for temporary files."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.filesize import decimal

from featd import clock
from featd.config import ModelConfig, RootConfig
from featd.doctor.finding import About, Finding, error, ok, warning
from featd.ingest.watch import REMOTE_FILE_SYSTEMS, file_system
from featd.paths import to_catalog
from featd.roots import Globs, RootState, root_state

INOTIFY = Path("/proc/sys/fs/inotify")
"""The folder of the kernel's limits."""
COUNT_SECONDS = 4.0
"""Folders are counted for so long."""
FEW_FILES = 1024
"""The usual limit of open files of a shell. A process of featd needs some hundred at most."""
USUAL_EVENTS = 16_384
"""The kernel's own limit of waiting events."""


def look_at_inotify(roots: Sequence[RootConfig]) -> Iterator[Finding]:
    """The limits of inotify against the folders to watch, which are counted for COUNT_SECONDS."""
    names = ("max_user_watches", "max_user_instances", "max_queued_events")
    watches, instances, events = (int((INOTIFY / name).read_text()) for name in names)
    watched = [root for root in roots if root.watch and root_state(root.path) is RootState.ONLINE]
    watched = [
        root for root in watched if file_system(os.path.realpath(root.path)) not in REMOTE_FILE_SYSTEMS
    ]
    deadline = clock.monotonic() + COUNT_SECONDS
    folders = 0
    for root in watched:
        folders += count_folders(root, deadline)
    about = "at least " if clock.monotonic() > deadline else ""
    counted = f"{about}{folders:,} {'folder' if folders == 1 else 'folders'}"
    if folders > watches:
        yield _raise(
            f"{counted} to watch, and one user may watch {watches:,}: the rest is only scanned, every rescan_seconds",
            "max_user_watches",
            _power_above(2 * folders),
        )
    if len(watched) > instances:
        yield _raise(
            f"{len(watched)} roots to watch, and one user may have {instances:,} inotify instances: the other roots are"
            " only scanned",
            "max_user_instances",
            _power_above(2 * len(watched)),
        )
    if events < USUAL_EVENTS:
        yield _raise(
            f"the kernel keeps {events:,} events, fewer than usual: when more files arrive at once, featd has to scan",
            "max_queued_events",
            USUAL_EVENTS,
        )
    if folders <= watches and len(watched) <= instances and events >= USUAL_EVENTS:
        yield ok(
            About.INOTIFY, f"{counted} to watch, of {watches:,} that one user may; {events:,} events may wait"
        )


def count_folders(root: RootConfig, deadline: float) -> int:
    """How many folders of a root are watched, as far as they can be counted until `deadline`."""
    globs = Globs(root.include, root.exclude)
    top = os.fsencode(os.path.realpath(root.path))
    skip = len(top.rstrip(b"/")) + 1
    waiting = [top]
    folders = 0
    while waiting and clock.monotonic() < deadline:
        folder = waiting.pop()
        if folder != top and globs.excludes_folder(to_catalog(folder[skip:])):
            continue
        folders += 1
        try:
            with os.scandir(folder) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # gone, or not readable: the check of the root tells
    return folders + len(waiting)


def _raise(text: str, name: str, value: int) -> Finding:
    setting = f"fs.inotify.{name}={value}"
    return warning(
        About.INOTIFY, text, f"`sysctl -w {setting}`, and write {setting} into /etc/sysctl.d/60-featd.conf"
    )


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def look_at_open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        shown = "any number of" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        yield ok(About.FILES, f"a process started here may open {shown} files")
        return
    at_most = (
        ""
        if hard == resource.RLIM_INFINITY or hard >= FEW_FILES
        else ", as root: the hard limit is lower, too"
    )
    yield warning(
        About.FILES,
        f"a process started here may open {soft:,} files: featd may need more",
        f"`ulimit -n {FEW_FILES}` before `featd run`{at_most}; under systemd, the unit sets LimitNOFILE",
    )


def look_at_temporary_files(model: ModelConfig | None) -> Iterator[Finding]:
    """The folder for temporary files, which takes twice a net's weights while it is loaded."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as problem:
        yield error(
            About.TEMPORARY, f"no folder for temporary files: {problem}", "set TMPDIR to a folder with room"
        )
        return
    free = shutil.disk_usage(folder).free
    weights = None if model is None else model.weights
    needed = 0
    if weights is not None and weights.is_file():
        needed = 2 * weights.stat().st_size
    if free < needed:
        yield warning(
            About.TEMPORARY,
            f"{folder} has {decimal(free)} free; loading the net takes {decimal(needed)} there, or several times as"
            " much memory",
            "set TMPDIR to a folder with room",
        )
    else:
        yield ok(About.TEMPORARY, f"{folder} has {decimal(free)} free")
