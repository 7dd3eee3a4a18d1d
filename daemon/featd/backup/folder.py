"""A backup's folder: what it says about itself, and who works on it.

`featd-backup.json` names the copy of the catalog that counts, a folder with the catalog and the configuration. Beside
it are the shards, named as in the store. The file is replaced when everything that the new copy needs is there, so that
there is a whole backup at any moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from featd.errors import FeatdError, LockHeldError, reason
from featd.shards.atomic import write_atomically

MANIFEST = "featd-backup.json"
LOCK = "featd-backup.lock"
FORMAT = 1
COPY = "catalog-"
"""How the folders begin that have a copy of the catalog."""
CATALOG = "catalog"
CONFIG = "featd.toml"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`copy`: the folder that counts; None while there is none yet. `database`: sqlite or postgresql. `schema`: the
    catalog's revision."""

    instance: str
    database: str
    schema: str
    copy: str | None = None
    created_at: str | None = None
    format: int = FORMAT


def read_manifest(folder: Path) -> Manifest | None:
    """What the folder says; None where it is no backup. FeatdError where it cannot be understood."""
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FeatdError(f"{folder / MANIFEST}: cannot be read: {reason(error)}") from error
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("format"), int) and document["format"] > FORMAT:
        raise FeatdError(f"{folder}: the backup is of format {document['format']}: install a newer featd")
    try:
        manifest = Manifest(**document)
        if manifest.copy is not None and Path(manifest.copy).name != manifest.copy:
            raise ValueError
    except (TypeError, ValueError):
        raise FeatdError(f"{folder / MANIFEST}: is damaged, or not of a backup by featd") from None
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """OSError."""
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode() + b"\n")


@contextlib.contextmanager
def locked(folder: Path, *, writing: bool) -> Iterator[None]:
    """One backup at a time, and no restore beside it. LockHeldError. A folder that can only be read needs no lock."""
    try:
        fd = os.open(
            folder / LOCK, (os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY) | os.O_CLOEXEC, 0o640
        )
    except OSError:
        if writing:
            raise
        yield
        return
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeldError(f"{folder}: another `featd backup` or `featd restore` is using it") from None
        yield
    finally:
        os.close(fd)
