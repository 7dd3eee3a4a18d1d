"""Taking a seat: its lock, its name in the kernel, and the id in its folder that the lock guards."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from featd import clock
from featd.config import Settings
from featd.errors import ConfigError, LockHeldError, StoreUnavailableError, reason
from featd.processes.seats import IDENTITY, Identity, folder_of, identity_of, lock_of, seats_here
from featd.shards.atomic import make_folder, write_atomically
from featd.shards.store import instance_of, is_store, refuse_root
from featd.supervisor.state_file import forget_failed_start

LOCK_SECONDS = 2.0
"""A start waits this long for the lock, which children of an old supervisor hold until they are dead."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A seat that is this process's. `key`: what its leases carry, the id and, behind a colon, this run of it, so that
    leases of an earlier run are known to be those of dead workers. `descriptors`: of its locks."""

    key: str
    descriptors: tuple[int, ...]


def take(settings: Settings, name: str, undo: contextlib.ExitStack) -> Taken:
    """Take the seat `name` until `undo`. LockHeldError; ConfigError; OSError."""
    store, folder = settings.store.path, folder_of(settings.state_folder, name)
    make_folder(folder)
    lock_fd = take_lock(lock_of(folder))
    undo.callback(os.close, lock_fd)
    descriptors = [lock_fd]
    instance = instance_of(store)
    if (held := take_name(f"featd/{instance}/{name}")) is not None:
        undo.callback(held.close)
        descriptors.append(held.fileno())
    identity = identity_of(folder)
    if identity is not None and instance is not None and identity.instance not in (None, instance):
        raise ConfigError(
            f"{folder} belongs to another instance of featd: give each instance a folder of its own in host.state"
        )
    here = Identity(secrets.token_hex(8) if identity is None else identity.id, instance, socket.gethostname())
    if here != identity:
        write_atomically(folder / IDENTITY, json.dumps(asdict(here)).encode() + b"\n")
    return Taken(f"{here.id}:{secrets.token_hex(4)}", tuple(descriptors))


@contextlib.contextmanager
def hold_locks(settings: Settings) -> Iterator[list[str]]:
    """For a command that must not run beside featd on this host: holds the seats of this host; yields their names.
    LockHeldError; StoreUnavailableError; ConfigError for root where the store belongs to another user."""
    store = settings.store.path
    refuse_root(store)
    if not is_store(store):
        raise StoreUnavailableError(f"{store}: no store there: is the disk mounted?")
    names = seats_here(settings.state_folder)
    with contextlib.ExitStack() as undo:
        try:
            for name in names:
                take(settings, name, undo)
        except OSError as error:
            raise StoreUnavailableError(f"store {store}: {reason(error)}") from error
        yield names
        for name in names:  # what it did may have been the way out
            forget_failed_start(folder_of(settings.state_folder, name))


def take_name(name: str) -> socket.socket | None:
    """One supervisor per instance, host and seat, also where the store was copied: a name in the kernel, which is free
    again when the socket is closed. LockHeldError. None in a sandbox without such sockets."""
    deadline = clock.monotonic() + LOCK_SECONDS
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        return None
    while True:
        try:
            held.bind(f"\0{name}"[:107])
            return held
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                held.close()
                return None
            if clock.monotonic() > deadline:
                held.close()
                raise LockHeldError(
                    "another featd of this instance and seat is running on this host, with another store or another"
                    " host.state: where the store differs, one of the two stores is a copy"
                ) from None
            clock.sleep(0.05)


def take_lock(path: Path) -> int:
    """One supervisor per seat; returns the descriptor that holds the lock while it is open. LockHeldError; OSError."""
    deadline = clock.monotonic() + LOCK_SECONDS
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another janitor may have removed the file of a seat long gone since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                break
        except BlockingIOError:
            if clock.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                os.close(fd)
                raise LockHeldError(
                    f"another featd (pid {holder}) is running on this store and host: see `featd status`. A second one"
                    " needs a seat of its own: `featd run --seat NAME`"
                ) from None
        os.close(fd)
        clock.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
