"""The store's marker. featd does not run where it is missing or belongs to another instance: the disk may not be
mounted, and then every write would go into the empty mount point."""

from __future__ import annotations

import json
import os
from pathlib import Path

from featd.errors import StoreUnavailableError
from featd.shards.atomic import make_folder, write_atomically
from featd.shards.layout import SHARDS

MARKER = "featd-store.json"
FORMAT = 1


def create_store(path: Path, instance: str) -> None:
    """Make `path` the store of `instance`, unless it is already. StoreUnavailableError where it belongs to another
    instance or cannot be written."""
    if _marker(path) is not None:
        check_store(path, instance)
        return
    try:
        make_folder(path)
        write_atomically(path / MARKER, json.dumps({"format": FORMAT, "instance": instance}).encode() + b"\n")
        make_folder(shards_folder(path))
    except OSError as error:
        raise StoreUnavailableError(
            f"{path}: cannot create the store: {os.strerror(error.errno or 0)}"
        ) from error


def check_store(path: Path, instance: str) -> None:
    """StoreUnavailableError where `path` is not the writable store of `instance`; says what to do."""
    check_readable(path, instance)
    for folder in (path, shards_folder(path)):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise StoreUnavailableError(
                f"{folder}: featd cannot write there: check its owner, and whether the disk is mounted read-only"
            )


def check_readable(path: Path, instance: str) -> None:
    """StoreUnavailableError where `path` is not the store of `instance`, writable or not."""
    if not path.is_dir():
        raise StoreUnavailableError(f"{path}: no store there: is the disk mounted?")
    marker = _marker(path)
    if marker is None:
        raise StoreUnavailableError(
            f"{path}: the folder has no {MARKER}, which says whose store it is: is the right disk mounted? Where it"
            f' was removed by mistake, put it back: {{"format": {FORMAT}, "instance": "{instance}"}}'
        )
    if marker.get("format") != FORMAT:
        raise StoreUnavailableError(
            f"{path}: {MARKER} is of format {marker.get('format')!r}, this featd knows {FORMAT}"
        )
    if marker.get("instance") != instance:
        raise StoreUnavailableError(
            f"{path}: the store belongs to instance {marker.get('instance')!r}, the catalog to {instance!r}: "
            "check catalog.url and store.path, or whether the right disk is mounted"
        )


def is_store(path: Path) -> bool:
    """Whether there is a marker, of any instance."""
    return (path / MARKER).is_file()


def shards_folder(store: Path) -> Path:
    """The folder of the shards, which has one folder for each day."""
    return store / SHARDS


def run_folder(store: Path, host: str) -> Path:
    """`<store>/run/<host>`: what the processes of one host leave for each other."""
    if "/" in host or host in ("", ".", ".."):
        raise ValueError(f"not a host's name: {host!r}")
    return store / "run" / host


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
        raise StoreUnavailableError(f"{path / MARKER}: is damaged: restore it, it holds the instance's id")
    return document
