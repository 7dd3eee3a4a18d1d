"""Folders of seats that nobody has started for long, such as those of pods and jobs: they are removed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featd import clock, logs
from featd.processes.seats import lock_of, locked

log = logs.get("janitor")

KEPT_SECONDS = 30 * 86_400.0
_OURS = re.compile(r"(seat|supervisor|failed_start)\.json(\.part)?|.+\.(hands|words)")
"""What is in the folder of a seat. One with anything else is left alone: it may be somebody else's."""


def tidy(own: Path) -> int:
    """Look at the folders beside `own`, that of this seat, which is marked as in use; returns how many it removed.
    Never raises: what cannot be removed does no harm."""
    removed = 0
    try:
        os.utime(lock_of(own))
        for lock in own.parent.glob("*.lock"):
            if lock.with_suffix("") != own and _remove(lock.with_suffix("")):
                removed += 1
    except OSError as error:
        log.debug("old_seats_left", "cannot look at the folders of other seats", error=error.strerror)
    return removed


def _remove(folder: Path) -> bool:
    with locked(folder) as is_free:
        if not is_free or not folder.is_dir():
            return False
        files = list(folder.iterdir())
        used = max(path.stat().st_mtime for path in (folder, lock_of(folder)))
        if clock.utcnow().timestamp() - used < KEPT_SECONDS or not all(map(_is_ours, files)):
            return False
        for path in files:
            path.unlink()
        folder.rmdir()
        # While it is locked: whoever waits for it looks whether it is still there.
        lock_of(folder).unlink()
    log.info(
        "old_seat_removed", "removed the folder of a seat that nobody has started for long", folder=folder
    )
    return True


def _is_ours(path: Path) -> bool:
    return _OURS.fullmatch(path.name) is not None and path.is_file()
