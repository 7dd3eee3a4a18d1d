"""Writing one shard: rows gather in memory, go to a .part in blocks, and become a shard by `seal`.

Owns the .part until then, and removes no other file. The format is docs/shard-format.md.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

import featd
from featd.crash_points import CrashPoint, crash_point
from featd.errors import ConfigError
from featd.paths import from_catalog
from featd.shards import layout
from featd.shards.atomic import create_part, publish_part, remove_part
from featd.shards.checksum import ALGORITHM, checksum_of
from featd.shards.layout import ShardName, check_blobs
from featd.shards.part_file import PartFile
from featd.shards.read import digest_of
from featd.states import ClaimedImage, SealedShard

# Rows that wait in memory before they are written, and the chunks they are written in. HDF5 compares the checksum of
# a whole chunk to read one row of it: with chunks of 128 KiB a row costs no more than in chunks of 1 MiB without
# checksums, and smaller ones make a whole read slower (benchmarks/chunks.py).
_BLOCK_ROWS = 256
_BLOCK_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 128 * 1024
_KEY_ROWS = 4096
_TEXT = h5py.string_dtype("utf-8")


def fits(vectors: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.bool_]:
    """Which of the vectors (n, d) stay finite when stored as `dtype`: a mask (n,). float16 ends at 65504."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype, copy=False)
    finite: npt.NDArray[np.bool_] = np.isfinite(stored).all(axis=1)
    return finite


class ShardWriter:
    """One shard in the making. `rows` and `bytes` (payload so far) say when to seal.

    After an OSError (disk full, I/O error, read-only) the .part is gone and the writer is dead.
    """

    def __init__(
        self,
        store: Path,
        name: ShardName,
        blobs: Mapping[str, int],
        *,
        dtype: str = "float32",
        compression: str = "none",
        attributes: Mapping[str, str | int],
    ) -> None:
        """Create the .part. `blobs`: name -> d, the first is `/feats`; `attributes`: instance, fingerprint, spec,
        engine and what else is to be kept at the root. ConfigError: blobs collide, or the compression's plugin
        is missing. OSError; FileExistsError if a file of that name is being written."""
        check_blobs(blobs)
        self.name = name
        self.rows = 0
        self.bytes = 0
        self._path = store / name.relative_path
        self._blobs = dict(blobs)
        self._dtype = np.dtype(dtype)
        self._filters = _filters(compression)
        self._attributes = dict(attributes)
        row_bytes = sum(self._blobs.values()) * self._dtype.itemsize
        self._block_rows = _power_of_two(min(_BLOCK_ROWS, _BLOCK_BYTES // max(row_bytes, 1)))
        self._images: list[ClaimedImage] = []
        self._contents: list[str] = []
        self._names: list[bytes] = []
        self._waiting = 0
        self._block = {
            blob: np.empty((self._block_rows, width), self._dtype) for blob, width in self._blobs.items()
        }
        self._digests = {blob: xxhash.xxh3_128() for blob in self._blobs}
        self._file: h5py.File | None = None
        self._datasets: dict[str, Any] = {}
        self._fd = create_part(self._path)
        self._part = PartFile(self._fd)
        self._open = True

    def append(
        self,
        images: Sequence[ClaimedImage],
        contents: Sequence[str],
        vectors: Mapping[str, npt.NDArray[np.float32]],
    ) -> int:
        """Add a row for each image, with the hash `xxh3_128:<hex>` of its bytes; `vectors`: each blob's (n, d)
        float32. Returns the first new row's index. ValueError where the shapes do not agree (nothing is added
        then); OSError where a full block could not be written."""
        self._must_be_open()
        count = len(images)
        if set(vectors) != set(self._blobs):
            raise ValueError(f"vectors of {sorted(vectors)}, but this shard holds {sorted(self._blobs)}")
        for blob, width in self._blobs.items():
            if vectors[blob].shape != (count, width):
                raise ValueError(f"{blob}: vectors of shape {vectors[blob].shape}, not {(count, width)}")
        names = [from_catalog(image.path) for image in images]
        first = self.rows
        done = 0
        while done < count:
            room = min(self._block_rows - self._waiting, count - done)
            for blob, block in self._block.items():
                block[self._waiting : self._waiting + room] = vectors[blob][done : done + room]
            self._waiting += room
            done += room
            if self._waiting == self._block_rows:
                self._write_block()
        self._images.extend(images)
        self._contents.extend(contents)
        self._names.extend(names)
        self.rows += count
        self.bytes += count * (sum(self._blobs.values()) * self._dtype.itemsize + 12)
        for name, image, content in zip(names, images, contents, strict=True):
            self.bytes += len(name) + len(image.root) + len(content)
        return first

    def seal(self) -> SealedShard:
        """Write what waits, make the file durable, give it its name. OSError: the .part is gone, and the rows
        are to be made again in another shard."""
        self._must_be_open()
        try:
            file = self._begin()
            if self._waiting:
                self._write_block()
            self._write_keys(file)
            self._close_hdf5()
            self._part.check()
            os.fsync(self._fd)
            size = os.fstat(self._fd).st_size
            checksum = checksum_of(self._fd)
            crash_point(CrashPoint.SHARD_SYNCED)
            publish_part(self._path, CrashPoint.SHARD_RENAMED)
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error
        self._release()
        engine = str(self._attributes["engine"])
        return SealedShard(self.name.file_name, self.name.relative_path, self.rows, size, checksum, engine)

    def discard(self) -> None:
        """Give up: remove the .part, and nothing else. Twice is once."""
        if not self._open:
            return
        self._close_hdf5()
        self._release()
        remove_part(self._path)

    def _failed(self, error: OSError | RuntimeError) -> OSError:
        """Remove the .part; the error to raise. The disk's own word goes before what HDF5 made of it."""
        self.discard()
        if self._part.error is not None:
            return self._part.error
        return error if isinstance(error, OSError) else OSError(errno.EIO, f"HDF5: {error}")

    def _must_be_open(self) -> None:
        if not self._open:
            raise ValueError(f"{self.name.file_name} is sealed or discarded")

    def _release(self) -> None:
        self._open = False
        os.close(self._fd)
        self._block.clear()

    def _close_hdf5(self) -> None:
        self._datasets.clear()
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except (OSError, RuntimeError):
                if self._part.error is None:  # else it only stumbles over what the disk did not take
                    raise

    def _begin(self) -> h5py.File:
        """The HDF5 file, made when there is something to write: then it is known whether one block is all."""
        if self._file is None:
            # The oldest format there is, at most 1.8's: MATLAB and old h5dumps read it.
            self._file = h5py.File(self._part, "w", libver=("earliest", "v108"))
            blobs = self._file.create_group(layout.BLOBS)
            for blob, width in self._blobs.items():
                self._datasets[blob] = self._create(blobs, blob, width)
            self._file[layout.FEATS] = self._datasets[next(iter(self._blobs))]  # a hard link
        return self._file

    def _create(self, group: h5py.Group, blob: str, width: int) -> Any:
        if self._waiting < self._block_rows:  # sealed within its first block: exactly the rows it has
            if not self._filters or not self._waiting:
                return group.create_dataset(blob, (self._waiting, width), self._dtype)
            chunk = (self._waiting, width)
        else:
            rows = _power_of_two(min(self._block_rows, _CHUNK_BYTES // max(width * self._dtype.itemsize, 1)))
            chunk = (rows, width)
        return group.create_dataset(
            blob,
            (0, width),
            self._dtype,
            maxshape=(None, width),
            chunks=chunk,
            fletcher32=True,
            **self._filters,
        )

    def _write_block(self) -> None:
        try:
            self._begin()
            for blob, dataset in self._datasets.items():
                values = self._block[blob][: self._waiting]
                self._digests[blob].update(values.data)
                if dataset.maxshape[0] is None:
                    start = dataset.shape[0]
                    dataset.resize(start + self._waiting, axis=0)
                    dataset[start:] = values
                else:
                    dataset[...] = values
            self._part.check()
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error
        self._waiting = 0

    def _write_keys(self, file: h5py.File) -> None:
        images = self._images
        roots = [os.fsencode(image.root) for image in images]
        contents = [content.encode() for content in self._contents]
        digests = {f"{layout.BLOBS}/{blob}": digest.hexdigest() for blob, digest in self._digests.items()}
        for name, values in ((layout.NAMES, self._names), (layout.ROOT, roots), (layout.CONTENT, contents)):
            file.create_dataset(name, data=_bytes_column(values), dtype=_TEXT)
            digests[name] = digest_of(values)
        keys: dict[str, npt.NDArray[Any]] = {
            layout.IMAGE_ID: np.array([image.id for image in images], np.int64),
            layout.VERSION: np.array([image.version for image in images], np.int32),
        }
        small = self.rows < self._block_rows
        checked: dict[str, Any] = (
            {} if small else {"fletcher32": True, "chunks": (min(self.rows, _KEY_ROWS),)}
        )
        for name, numbers in keys.items():
            file.create_dataset(name, data=numbers, **checked)
            digests[name] = digest_of([numbers.data])
        file.attrs.update(
            {
                "featd_version": featd.__version__,
                **self._attributes,
                "format": layout.FORMAT,
                "blobs": json.dumps(list(self._blobs)),
                layout.DIGESTS: json.dumps(
                    {name: f"{ALGORITHM}:{digest}" for name, digest in digests.items()}
                ),
                "created_at": self.name.created_at.isoformat(),
            }
        )


def _bytes_column(values: list[bytes]) -> npt.NDArray[np.object_]:
    column: npt.NDArray[np.object_] = np.empty(len(values), object)
    column[:] = values
    return column


def _filters(compression: str) -> dict[str, Any]:
    if compression == "none":
        return {}
    if compression == "gzip":
        # Level 1: higher ones cost twice the time for a few percent of features.
        return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    if compression == "zstd":
        try:
            plugin = importlib.import_module("hdf5plugin")
        except ImportError:
            raise ConfigError(
                'store.compression: "zstd" needs hdf5plugin, here and wherever shards are read: '
                '`pip install hdf5plugin`, or write "gzip"'
            ) from None
        return dict(plugin.Zstd(clevel=1))  # no shuffle: it makes zstd worse on features
    raise ConfigError(f"store.compression: unknown {compression!r}: none, gzip or zstd")


def _power_of_two(most: int) -> int:
    """The largest power of two that is at most `most`, at least 1."""
    return 1 << max(most.bit_length() - 1, 0)
