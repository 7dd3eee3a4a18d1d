"""The files of an index, in a folder for each blob, `<store>/index/<blob>/`.

`index.json` is published last and names the others: the vectors, to whose end new ones are appended; a table with a
line for each of them; checksums of the vectors, block by block; and, where there are many vectors, the lists of FAISS.
What a killed writer left is not named by it. A reader compares the table and the lists with their checksums when it
opens them, and a block of vectors when it first reads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from featd.errors import FeatdError, StoreUnavailableError, reason
from featd.paths import open_regular, read_regular
from featd.shards import atomic
from featd.shards.checksum import checksum

FORMAT = 1
HEAD, LOCK = "index.json", "lock"
VECTORS, TABLE, SUMS, LISTS = "vectors", "table", "sums", "lists"
ROW = np.dtype([("id", "<i8"), ("version", "<i4"), ("scale", "<f4"), ("norm", "<f4")])
"""A line of the table: the image (NONE: no image's any more) and the version of its vector; what the numbers of the row
are to be multiplied by; and the square of its length, before that."""
NONE = -1
BLOCK_BYTES = 65_536


class IndexBusyError(FeatdError):
    """Another process is writing this index."""


class IndexDamagedError(FeatdError):
    """The files of an index are not what they were written as, or are of another featd: it must be made anew."""


@dataclass(frozen=True, slots=True)
class Head:
    """What `index.json` says. `token`: up to where in the feed the index has the changes. `serial`: part of the names
    of the files that belong to it; `vectors`: the name of theirs, which stays while they are appended to. `probes` and
    `candidates`: how much of the lists is looked at for a query."""

    instance: str
    fingerprint: str
    blob: str
    token: str
    dtype: str
    size: int
    rows: int = 0
    serial: int = 0
    vectors: str = f"{VECTORS}-0"
    probes: int = 0
    candidates: int = 0
    checksums: dict[str, str] | None = None

    @property
    def row_bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK_BYTES // self.row_bytes)


def index_folder(store: Path) -> Path:
    """Where the indexes of all blobs are."""
    return store / "index"


def folder_of(store: Path, blob: str) -> Path:
    """Where the index of a blob is."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", blob)[:40]
    return index_folder(store) / f"{readable}-{hashlib.sha256(blob.encode()).hexdigest()[:8]}"


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only one that writes this index; waits for another, or IndexBusyError. StoreUnavailableError."""
    try:
        atomic.make_folder(folder)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, atomic.FILE_MODE)
    except OSError as error:
        raise _unwritten(folder, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise IndexBusyError(f"{folder}: another process is writing this index") from None
        yield
    finally:
        os.close(lock)


def read_head(folder: Path) -> Head | None:
    """None where there is no index. IndexDamagedError."""
    try:
        stored = json.loads(read_regular(folder / HEAD))
        head = Head(**stored["head"])
        good = stored["format"] == FORMAT and stored["checksum"] == _sum_of(head)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IndexDamagedError(f"{folder / HEAD}: {error}") from None
    if not good:
        raise IndexDamagedError(f"{folder / HEAD}: its checksum differs, or it is of another featd")
    return head


def _sum_of(head: Head) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(asdict(head), sort_keys=True).encode())


class Stored:
    """The files that one `index.json` names, open. They stay readable while a newer one replaces them."""

    def __init__(self, folder: Path, head: Head) -> None:
        """IndexDamagedError; FileNotFoundError where a newer one has replaced them."""
        self.folder = folder
        self.head = head
        try:
            for path in (*map(self.path, (TABLE, SUMS)), folder / head.vectors):
                open_regular(path).close()  # a FIFO would wait for ever
            for kind, expected in (head.checksums or {}).items():
                open_regular(self.path(kind)).close()
                if checksum(self.path(kind)) != expected:
                    raise IndexDamagedError(f"{self.path(kind)}: differs from its checksum")
            self.table = np.fromfile(self.path(TABLE), ROW)
            self._sums = np.fromfile(self.path(SUMS), np.uint64)
            self._vectors = _mapped(folder / head.vectors, head)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise IndexDamagedError(f"{folder}: {error}") from None
        if len(self.table) != head.rows or len(self._sums) != -(-head.rows // head.block_rows):
            raise IndexDamagedError(f"{folder}: the table has {len(self.table)} lines, not {head.rows}")
        self._checked = np.zeros(len(self._sums), bool)

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self.head.serial}"

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Vectors (n, d) as they are stored. IndexDamagedError."""
        self._check(np.unique(rows // self.head.block_rows))
        found: npt.NDArray[Any] = self._vectors[rows]
        return found

    def all(self) -> npt.NDArray[Any]:
        """All vectors (rows, d) as they are stored, mapped. IndexDamagedError."""
        self._check(np.arange(len(self._sums)))
        return self._vectors

    def _check(self, blocks: npt.NDArray[Any]) -> None:
        for block in blocks[~self._checked[blocks]].tolist():
            if _sum(self._vectors, block, self.head) != self._sums[block]:
                raise IndexDamagedError(
                    f"{self.folder / self.head.vectors}: block {block} differs from its checksum"
                )
            self._checked[block] = True


def _mapped(path: Path, head: Head) -> npt.NDArray[Any]:
    if not head.rows:
        return np.empty((0, head.size), head.dtype)
    return np.memmap(path, head.dtype, "r", shape=(head.rows, head.size))


def _sum(vectors: npt.NDArray[Any], block: int, head: Head) -> int:
    rows = vectors[block * head.block_rows : (block + 1) * head.block_rows]
    return xxhash.xxh3_64_intdigest(rows.data)


class Appender:
    """Appends vectors to those of an index, or begins a file of them."""

    def __init__(self, folder: Path, head: Head) -> None:
        """StoreUnavailableError."""
        self._folder = folder
        self._head = head
        self.rows = head.rows
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(folder / head.vectors, flags, atomic.FILE_MODE)
            os.ftruncate(self._fd, head.rows * head.row_bytes)  # a writer that was killed may have left more
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise _unwritten(folder, error) from error

    def append(self, vectors: npt.NDArray[Any]) -> None:
        """Vectors (n, d) as they are to be stored. StoreUnavailableError."""
        left = np.ascontiguousarray(vectors, self._head.dtype).data.cast("B")
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise _unwritten(self._folder, error) from error
        self.rows += len(vectors)

    def finish(self) -> None:
        """Make what was appended durable. StoreUnavailableError."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _unwritten(self._folder, error) from error

    def close(self) -> None:
        os.close(self._fd)


def publish(
    folder: Path, head: Head, table: npt.NDArray[Any], lists: bytes | None, before: Stored | None
) -> Head:
    """Write all but the vectors, which are there already, then `index.json`; remove what it does not name. Returns the
    head as published. `before`: the index whose vectors were appended to. StoreUnavailableError."""
    head = replace(head, rows=len(table), serial=head.serial + 1)
    files = {TABLE: table.tobytes(), SUMS: _sums(folder, head, before).tobytes()}
    if lists is not None:
        files[LISTS] = lists
    try:
        for kind, data in files.items():
            atomic.write_atomically(folder / f"{kind}-{head.serial}", data)
        sums = {kind: checksum(folder / f"{kind}-{head.serial}") for kind in files}
        head = replace(head, checksums=sums)
        document = {"format": FORMAT, "checksum": _sum_of(head), "head": asdict(head)}
        atomic.write_atomically(folder / HEAD, json.dumps(document).encode())
        kept = {HEAD, LOCK, head.vectors, *(f"{kind}-{head.serial}" for kind in files)}
        _remove_all_but(folder, kept)
    except OSError as error:
        raise _unwritten(folder, error) from error
    return head


def _sums(folder: Path, head: Head, before: Stored | None) -> npt.NDArray[np.uint64]:
    """The checksum of each block of vectors; complete blocks of `before` have theirs already."""
    vectors = _mapped(folder / head.vectors, head)
    sums = np.empty(-(-head.rows // head.block_rows), np.uint64)
    known = before.head.rows // head.block_rows if before is not None else 0
    if before is not None:
        sums[:known] = np.fromfile(before.path(SUMS), np.uint64)[:known]
    for block in range(known, len(sums)):
        sums[block] = _sum(vectors, block, head)
    return sums


def remove_indexes(store: Path) -> None:
    """Remove the files of all indexes. IndexBusyError while one is being written; StoreUnavailableError."""
    whole = index_folder(store)
    if not whole.exists():
        return
    try:
        for folder in whole.iterdir():
            with locked(folder, wait=False):
                clear(folder)
    except OSError as error:
        raise StoreUnavailableError(f"{whole}: cannot be removed: {reason(error)}") from error


def clear(folder: Path) -> None:
    """Remove the files of an index, by the only one that writes it. StoreUnavailableError."""
    try:
        _remove_all_but(folder, {LOCK})
    except OSError as error:
        raise _unwritten(folder, error) from error


def _remove_all_but(folder: Path, kept: set[str]) -> None:
    """`index.json` goes first. OSError."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != HEAD):
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unwritten(folder: Path, error: OSError) -> StoreUnavailableError:
    way_out = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        way_out = ": whoever may write into the store must run `featd index` first"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        way_out = ": remove what stands there, it is only a cache"
    return StoreUnavailableError(f"{folder}: cannot write the index: {reason(error)}{way_out}")
