"""Whether a root, a watched folder, is there and can be believed."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path


class RootState(StrEnum):
    """Whether a root can be believed. Only `online` lets rows become gone, or be claimed."""

    ONLINE = "online"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"  # what an unmounted disk leaves: an empty mount point


def root_state(root: Path) -> RootState:
    """Check a root now."""
    try:
        with os.scandir(root) as entries:
            return RootState.ONLINE if next(entries, None) is not None else RootState.EMPTY
    except (FileNotFoundError, NotADirectoryError):
        return RootState.MISSING
    except OSError:
        return RootState.UNREADABLE
