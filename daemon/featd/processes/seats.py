"""Seats: one supervisor, its name, and the folder with its state. Every host has one seat, of its name, unless
`featd run --seat` says otherwise. Read here; start/seat.py takes one.

The folder is `<store>/run/<seat>`, or `<host.state>/<seat>`; the lock is the file `<seat>.lock` beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from featd.errors import ConfigError
from featd.paths import read_regular

IDENTITY = "seat.json"
LOCK = ".lock"
MOST_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What is in a seat's folder. `id`: what its leases carry; random, and the same as long as the folder lives.
    `host`: where it ran last."""

    id: str
    instance: str | None
    host: str


def check_name(name: str) -> str:
    """`name`, if a seat may have it. ConfigError."""
    if not _NAME.fullmatch(name) or name.endswith(LOCK):
        raise ConfigError(
            f"--seat {name!r}: up to 64 letters, digits, dots, hyphens and underscores, first a letter or a digit,"
            f" and not {LOCK} at the end"
        )
    return name


def folder_of(state: Path, name: str) -> Path:
    """The folder with the state of a seat. ValueError where its name cannot be that of a folder."""
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"not a seat's name: {name!r}")
    return state / name


def lock_of(folder: Path) -> Path:
    """The file whose lock a seat's supervisor holds."""
    return folder.with_name(f"{folder.name}{LOCK}")


def identity_of(folder: Path) -> Identity | None:
    """What is in the folder of a seat; None where that is nothing, or nothing that featd wrote."""
    try:
        found = json.loads(read_regular(folder / IDENTITY, MOST_BYTES))
        return Identity(str(found["id"]), found["instance"], str(found["host"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def seats_here(state: Path) -> list[str]:
    """The names of the seats that ran on this host last, whether they run or not; the host's own where there are
    none. A folder that says nothing is that of the host of its name."""
    here = socket.gethostname()
    names = set()
    with suppress(OSError), os.scandir(state) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                identity = identity_of(Path(entry.path))
                if entry.name == here if identity is None else identity.host == here:
                    names.add(entry.name)
    return sorted(names) or [here]


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Holds the lock of a seat that does not run; False where it runs, or has no lock. OSError."""
    fd = os.open(lock_of(folder), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)
