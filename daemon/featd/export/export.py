"""Exporting: the live vectors of a catalog, streamed into one file in order of image id.

The catalog is read in chunks, each a snapshot of its own: an image that changes, vanishes or is compacted
meanwhile is in the export as it stood when its chunk was read, or not at all. Every vector is checked to be
that of the image whose name it gets. Nothing appears at its place before it is complete.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd.catalog import connect, instance, stats
from featd.catalog.stats import LiveVector
from featd.errors import FeatdError, ModelError, NothingMatchedError
from featd.paths import from_catalog, to_catalog
from featd.shards import atomic
from featd.shards.layout import ShardError
from featd.shards.part_file import PartFile
from featd.shards.read import ShardReader
from featd.shards.store import MARKER, check_store

CHUNK_BYTES = 32 * 1024 * 1024
"""Of vectors in memory at a time."""
CATALOG_ROWS = 4096
"""Read from the catalog at a time."""
OPEN_SHARDS = 16
NPY_HEADER_BYTES = 128
"""Fixed, so that it can be written again when the number of rows is known. A multiple of 64, as numpy aligns."""
FEATURES, NAMES, ROOTS = "features.npy", "names.txt", "roots.txt"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    rows: int
    size: int
    dtype: str
    blob: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images and their vectors (n, d), row by row."""

    images: Sequence[LiveVector]
    vectors: npt.NDArray[Any]


class Sink(Protocol):
    """Takes chunks; nothing is visible before `publish`."""

    def append(self, chunk: Chunk) -> None: ...

    def publish(self, exported: Exported, attributes: dict[str, str]) -> None: ...

    def discard(self) -> None: ...


def to_npy(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write OUT/features.npy (n, d) and OUT/names.txt, and OUT/roots.txt where there are several roots."""
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise FeatdError(f"{out} is there already: name another place, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise FeatdError(f"{out} is a file: name a folder to make, or --format hdf5")
    return _export(catalog, store, blob, lambda: NpySink(out))


def to_hdf5(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write one file with `feats` (n, d) and `names`, and `root`, `image_id` and `version` beside them."""
    if out.is_dir():
        raise FeatdError(f"{out} is a folder: name a file to make, or --format npy")
    if out.exists() and not force:
        raise FeatdError(f"{out} is there already: name another place, or replace it with --force")
    return _export(catalog, store, blob, lambda: Hdf5Sink(out))


def _export(catalog: sa.Engine, store: Path, blob: str | None, open_sink: Any) -> Exported:
    with connect.reading(catalog) as conn:
        instance_id = instance.instance_id(conn)
        fingerprint, spec = instance.fingerprint(conn), instance.spec(conn)
    if fingerprint is None or spec is None:
        raise NothingMatchedError("nothing to export: no image is done yet")
    _require_store(store, instance_id)
    chosen = _choose(blob, list(spec["blobs"]))
    chunks = read_chunks(catalog, store, chosen, fingerprint)
    first = next(chunks, None)
    if first is None:
        raise NothingMatchedError("nothing to export: no image is done")
    exported = Exported(0, first.vectors.shape[1], str(first.vectors.dtype), chosen)
    sink: Sink = open_sink()
    try:
        rows = 0
        for chunk in itertools.chain([first], chunks):
            if chunk.vectors.shape[1] != exported.size or str(chunk.vectors.dtype) != exported.dtype:
                raise ShardError(
                    f"blob {chosen!r} has {chunk.vectors.shape[1]} numbers ({chunk.vectors.dtype}) in one shard and"
                    f" {exported.size} ({exported.dtype}) in another"
                )
            sink.append(chunk)
            rows += len(chunk.images)
        exported = Exported(rows, exported.size, exported.dtype, chosen)
        attributes = {
            "instance": instance_id,
            "fingerprint": fingerprint,
            "spec": json.dumps(spec, sort_keys=True),
            "blobs": json.dumps([chosen]),
        }
        sink.publish(exported, attributes)
    except BaseException:
        sink.discard()
        raise
    return exported


def _require_store(store: Path, instance_id: str) -> None:
    """StoreUnavailableError where `store` is not this instance's. Whoever exports need not be able to write there."""
    try:
        found = json.loads((store / MARKER).read_bytes())["instance"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != instance_id:
        check_store(store, instance_id)


def _choose(blob: str | None, blobs: Sequence[str]) -> str:
    if blob is None:
        return blobs[0]
    if blob not in blobs:
        raise ModelError(f"no blob {blob!r} in this catalog; it has: {', '.join(blobs)}")
    return blob


# Reading


def read_chunks(catalog: sa.Engine, store: Path, blob: str, fingerprint: str) -> Iterator[Chunk]:
    """The live vectors of `blob` in order of image id. ShardError where a shard is not what its rows say."""
    with OpenShards(store, fingerprint) as shards:
        for images in stats.walk_live(catalog, CATALOG_ROWS):
            at = 0
            while at < len(images):
                some = images[at : at + _rows_at_once(shards, images[at], blob)]
                at += len(some)
                chunk = _read(shards, some, blob) or _read_again(catalog, shards, some, blob)
                if chunk.images:
                    yield chunk


def _rows_at_once(shards: OpenShards, image: LiveVector, blob: str) -> int:
    try:
        size = shards.open(image.shard_path).blobs.get(blob, 1)
    except FileNotFoundError:
        return CATALOG_ROWS
    return max(1, CHUNK_BYTES // (size * 4))


def _read(shards: OpenShards, images: Sequence[LiveVector], blob: str) -> Chunk | None:
    """The vectors of `images`; None where a shard is not there (compaction has moved its rows meanwhile)."""
    by_shard: dict[str, list[int]] = {}
    for at, image in enumerate(images):
        by_shard.setdefault(image.shard_path, []).append(at)
    vectors: npt.NDArray[Any] | None = None
    for path, places in by_shard.items():
        try:
            reader = shards.open(path)
        except FileNotFoundError:
            return None
        places.sort(key=lambda at: images[at].shard_row)
        rows = np.array([images[at].shard_row for at in places], np.int64)
        ids, _ = reader.keys(rows)
        wrong = np.flatnonzero(ids != np.array([images[at].image_id for at in places], np.int64))
        if wrong.size:
            at = places[int(wrong[0])]
            raise ShardError(
                f"{reader.path}: row {images[at].shard_row} holds the vector of image {int(ids[wrong[0]])}, the catalog"
                f" says image {images[at].image_id} ({images[at].path}): nothing was exported"
            )
        found = reader.read(blob, rows)
        if vectors is None:
            vectors = np.empty((len(images), found.shape[1]), found.dtype)
        if vectors.shape[1:] != found.shape[1:] or vectors.dtype != found.dtype:
            raise ShardError(
                f"{reader.path}: blob {blob!r} is {found.dtype} of {found.shape[1]}, unlike other shards"
            )
        vectors[places] = found
    assert vectors is not None  # there is at least one image
    return Chunk(images, vectors)


def _read_again(catalog: sa.Engine, shards: OpenShards, images: Sequence[LiveVector], blob: str) -> Chunk:
    """Where the rows of `images` point now; ShardError where a shard is missing that the catalog still names."""
    for _ in range(3):
        wanted = {image.image_id for image in images}
        with connect.reading(catalog) as conn:
            found = stats.live_vectors(conn, images[0].image_id - 1, len(images))
        images = [image for image in found if image.image_id in wanted]
        if not images:
            return Chunk((), np.empty((0, 0), np.float32))
        if (chunk := _read(shards, images, blob)) is not None:
            return chunk
    missing = next(image for image in images if not shards.path(image.shard_path).exists())
    raise ShardError(
        f"{shards.path(missing.shard_path)}: missing, but the catalog says that row {missing.shard_row} of it is"
        f" {missing.path}: nothing was exported"
    )


class OpenShards:
    """The shards read last, kept open."""

    def __init__(self, store: Path, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()

    def path(self, relative: str) -> Path:
        return self._store / relative

    def open(self, relative: str) -> ShardReader:
        """FileNotFoundError where it is not there; ShardError where it holds other vectors than the catalog."""
        reader = self._readers.get(relative)
        if reader is None:
            while len(self._readers) >= OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
            reader = ShardReader(self.path(relative))
            if reader.attributes.get("fingerprint") != self._fingerprint:
                reader.close()
                raise ShardError(f"{reader.path}: holds vectors of another fingerprint than the catalog")
            self._readers[relative] = reader
        self._readers.move_to_end(relative)
        return reader

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, *exc: object) -> None:
        for reader in self._readers.values():
            reader.close()


# Writing


class NpySink:
    """features.npy, names.txt and roots.txt, in a folder. features.npy appears last: with it all is there."""

    def __init__(self, folder: Path) -> None:
        self._made = not folder.exists()
        self._folder = folder
        self._roots: set[str] = set()
        self._files: dict[str, IO[bytes]] = {}
        for name in (FEATURES, NAMES, ROOTS):
            atomic.remove_part(folder / name)  # what a killed export left behind
            self._files[name] = os.fdopen(atomic.create_part(folder / name), "wb")
        self._files[FEATURES].write(bytes(NPY_HEADER_BYTES))

    def append(self, chunk: Chunk) -> None:
        self._files[FEATURES].write(np.ascontiguousarray(chunk.vectors).data)
        for image in chunk.images:
            self._roots.add(image.root)
            self._files[NAMES].write(image.path.encode() + b"\n")
            self._files[ROOTS].write(to_catalog(os.fsencode(image.root)).encode() + b"\n")

    def publish(self, exported: Exported, attributes: dict[str, str]) -> None:
        self._files[FEATURES].seek(0)
        self._files[FEATURES].write(npy_header(np.dtype(exported.dtype), (exported.rows, exported.size)))
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        (self._folder / FEATURES).unlink(missing_ok=True)  # never old vectors beside new names
        atomic.publish_part(self._folder / NAMES)
        if len(self._roots) > 1:
            atomic.publish_part(self._folder / ROOTS)
        else:
            atomic.remove_part(self._folder / ROOTS)
            (self._folder / ROOTS).unlink(missing_ok=True)
        atomic.publish_part(self._folder / FEATURES)

    def discard(self) -> None:
        for name, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
            atomic.remove_part(self._folder / name)
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def npy_header(dtype: np.dtype[Any], shape: tuple[int, int]) -> bytes:
    """The first NPY_HEADER_BYTES of an .npy file, format 1.0 (numpy.lib.format describes it)."""
    content = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    length = NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + content.encode().ljust(length - 1) + b"\n"


class Hdf5Sink:
    """One HDF5 file that plain h5py, MATLAB and h5dump read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        atomic.remove_part(path)
        self._fd = atomic.create_part(path)
        self._part = PartFile(self._fd)
        self._file = h5py.File(self._part, "w", libver=("earliest", "v108"))
        self._rows = 0

    def append(self, chunk: Chunk) -> None:
        count, size = chunk.vectors.shape
        if self._rows == 0:
            self._create(size, chunk.vectors.dtype)
        values = {
            "feats": chunk.vectors,
            # Raw bytes, as in shards: a name that is not UTF-8 still opens its file.
            "names": np.array([from_catalog(image.path) for image in chunk.images], object),
            "root": np.array([os.fsencode(image.root) for image in chunk.images], object),
            "image_id": np.array([image.image_id for image in chunk.images], np.int64),
            "version": np.array([image.version for image in chunk.images], np.int32),
        }
        for name, rows in values.items():
            dataset = self._file[name]
            dataset.resize(self._rows + count, axis=0)
            dataset[self._rows :] = rows
        self._rows += count
        self._part.check()

    def _create(self, size: int, dtype: np.dtype[Any]) -> None:
        rows = max(1, min(4096, (1 << 20) // (size * dtype.itemsize)))
        self._file.create_dataset("feats", (0, size), dtype, maxshape=(None, size), chunks=(rows, size))
        for name, kind in (
            ("names", h5py.string_dtype()),
            ("root", h5py.string_dtype()),
            ("image_id", np.int64),
            ("version", np.int32),
        ):
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(4096,))

    def publish(self, exported: Exported, attributes: dict[str, str]) -> None:
        for name, value in attributes.items():
            self._file.attrs[name] = value
        self._file.close()
        self._part.check()
        os.fsync(self._fd)
        self._close()
        atomic.publish_part(self._path)

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()
        self._close()
        atomic.remove_part(self._path)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
