"""The store's marker. featd does not run where it is missing or belongs to another instance: the disk may not be
mounted, and then every write would go into the empty mount point.

Marker and catalog share a nonce (catalog/pairing.py), so that a copy of the store that was left behind, or a catalog
that was restored, is not used by mistake. Beside the marker stands the mark: how far the catalog had come.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from dataclasses import asdict, dataclass
from pathlib import Path

from featd.errors import ConfigError, StoreUnavailableError
from featd.shards.atomic import make_folder, write_atomically
from featd.shards.layout import SHARDS

MARKER = "featd-store.json"
MARK = "featd-mark.json"
RESTORING = "featd-restoring.json"
"""Beside the shards while a backup is restored: whose, and which."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class StoreKey:
    """What the marker of a catalog's store says. `nonces`: the present one and, while a start changes it, the next;
    None is that of a store that no start has given one yet."""

    instance: str
    nonces: tuple[str | None, ...] = (None,)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the catalog had come: its newest shard, and how often hosts that start had asked for the mark."""

    newest_shard: int = 0
    asked: int = 0


class OtherStoreError(ConfigError):
    """Catalog and store are of one instance and do not go together: one of them is a copy, or was restored."""


def create_store(path: Path, key: StoreKey) -> None:
    """Make `path` the store of `key`, unless it is already. StoreUnavailableError where it belongs to another
    instance or cannot be written."""
    if _marker(path) is not None:
        check_store(path, key)
        return
    try:
        make_folder(path)
        write_marker(path, key.instance, key.nonces[-1])
        make_folder(shards_folder(path))
    except OSError as error:
        raise StoreUnavailableError(
            f"{path}: cannot create the store: {os.strerror(error.errno or 0)}"
        ) from error


def write_marker(path: Path, instance: str, nonce: str | None) -> None:
    """Make or replace the marker. OSError."""
    write_atomically(path / MARKER, _marker_of(instance, nonce).encode() + b"\n")


def _marker_of(instance: str, nonce: str | None) -> str:
    marker = {"format": FORMAT, "instance": instance} | ({} if nonce is None else {"nonce": nonce})
    return json.dumps(marker)


def turn_of(nonce: str | None) -> int:
    """How many times the nonce was changed before: `7-5f3a...` is the seventh."""
    number = (nonce or "").partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def check_store(path: Path, key: StoreKey) -> None:
    """StoreUnavailableError or OtherStoreError where `path` is not the writable store of `key`; says what to do."""
    check_readable(path, key)
    check_writable(path)


def check_writable(path: Path) -> None:
    """StoreUnavailableError where this process may not write to a store that is there; says what to do."""
    for folder in (path, shards_folder(path)):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise StoreUnavailableError(
                f"{folder}: featd cannot write there: check its owner, and whether the disk is mounted read-only"
            )


def check_readable(path: Path, key: StoreKey) -> None:
    """StoreUnavailableError or OtherStoreError where `path` is not the store of `key`, writable or not."""
    nonce = check_instance(path, key)
    if nonce in key.nonces:
        return
    if turn_of(nonce) > max(map(turn_of, key.nonces)):
        raise OtherStoreError(RESTORED.format(store=path))
    raise OtherStoreError(
        f"{path}: featd has used another store since: this one is a copy that was left behind, or came from a backup."
        " Name the other in store.path; or, if featd is to go on with this one, run `featd db restored`"
    )


RESTORED = (
    "the catalog is older than its store {store}: it was restored from a backup. If it is to be used, run"
    " `featd db restored`: featd then does again what the backup does not know; else bring the newer catalog back"
)


def check_instance(path: Path, key: StoreKey) -> str | None:
    """The nonce of the store `path`. StoreUnavailableError where it is not a store of the key's instance."""
    if not path.is_dir():
        raise StoreUnavailableError(f"{path}: no store there: is the disk mounted?")
    marker = _marker(path)
    if marker is None and (path / RESTORING).exists():
        raise StoreUnavailableError(
            f"{path}: a backup is being restored into this store; if that was interrupted, run `featd restore` again"
        )
    if marker is None:
        raise StoreUnavailableError(
            f"{path}: the folder has no {MARKER}, which says whose store it is: is the right disk mounted? Where it"
            f" was removed by mistake, put it back: {_marker_of(key.instance, key.nonces[-1])}"
        )
    if marker.get("format") != FORMAT:
        raise StoreUnavailableError(
            f"{path}: {MARKER} is of format {marker.get('format')!r}, this featd knows {FORMAT}"
        )
    if marker.get("instance") != key.instance:
        raise StoreUnavailableError(
            f"{path}: the store belongs to instance {marker.get('instance')!r}, the catalog to {key.instance!r}: "
            "check catalog.url and store.path, or whether the right disk is mounted"
        )
    nonce = marker.get("nonce")
    return nonce if isinstance(nonce, str) else None


def is_store(path: Path) -> bool:
    """Whether there is a marker, of any instance."""
    return (path / MARKER).is_file()


def instance_of(path: Path) -> str | None:
    """The instance that the store belongs to; None where there is no store. StoreUnavailableError."""
    instance = (_marker(path) or {}).get("instance")
    return instance if isinstance(instance, str) else None


def shards_folder(store: Path) -> Path:
    """The folder of the shards, which has one folder for each day."""
    return store / SHARDS


def shard_is_missing(shard: Path) -> bool:
    """Whether a shard certainly is not there; not where its folder cannot be read."""
    try:
        shard.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def unknown_folder(store: Path) -> Path:
    """Where shards wait that the catalog does not know."""
    return store / "unknown"


def free_bytes(store: Path) -> int:
    """What is left on the store's disk. OSError."""
    found = os.statvfs(store)
    return found.f_bavail * found.f_frsize


def lacks_room(store: Path, min_free: int) -> bool:
    """Whether the store's disk has fewer than `min_free` free bytes. False where that cannot be told: whoever writes
    there gets the reason."""
    try:
        return free_bytes(store) < min_free
    except OSError:
        return False


def read_mark(path: Path) -> Mark:
    """The mark of the store; one of zeros where there is none."""
    try:
        document = json.loads((path / MARK).read_bytes())
        return Mark(int(document["newest_shard"]), int(document.get("asked", 0)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Mark()


def write_mark(path: Path, mark: Mark) -> None:
    """OSError."""
    write_atomically(path / MARK, json.dumps(asdict(mark)).encode() + b"\n")


def _marker(path: Path) -> dict[str, object] | None:
    """The marker's content; None where there is none. StoreUnavailableError where it cannot be read."""
    try:
        document = json.loads((path / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnavailableError(
            f"{path / MARKER}: cannot be read: {os.strerror(error.errno or 0)}: check the disk and its owner"
        ) from error
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise StoreUnavailableError(
            f"{path / MARKER}: is damaged: restore it; or remove it, and featd says what belongs there"
        )
    return document


def refuse_root(store: Path) -> None:
    """ConfigError where root works on the store of another user, who could not write into the folders it makes."""
    with contextlib.suppress(FileNotFoundError):
        owner = store.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            try:
                name = pwd.getpwuid(owner).pw_name
            except KeyError:
                name = f"#{owner}"
            raise ConfigError(
                f"store {store} belongs to {name}, who could not write into folders that root makes there: run featd as"
                f" this user (`sudo -u {name} featd run ...`), or give the store to root"
            )
