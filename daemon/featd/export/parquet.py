"""An export as one Parquet file: the columns image_id, root, path, version, and for each blob one of lists of a fixed
size. The ids that an export since a token calls deleted are in a second file, with the one column image_id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.catalog.live import LiveVector
from featd.errors import FeatdError
from featd.paths import to_catalog
from featd.reader.vectors import Kind
from featd.shards import atomic

try:
    import pyarrow as pa
    from pyarrow import parquet as pq
except ImportError:
    raise FeatdError(
        "--format parquet needs pyarrow: pip install 'featd[parquet]', or use --format npy"
    ) from None

KEYS = pa.schema(
    [("image_id", pa.int64()), ("root", pa.string()), ("path", pa.string()), ("version", pa.int32())]
)
_DELETED = pa.schema([("image_id", pa.int64())])


def deleted_of(path: Path) -> Path:
    """The second file of an export: `new.deleted.parquet` beside `new.parquet`."""
    return path.with_name(f"{path.stem}.deleted.parquet")


class ParquetSink:
    """The file; each portion that is appended is a row group, so that neither writer nor readers need much memory."""

    def __init__(self, path: Path, blobs: Mapping[str, Kind], attributes: Mapping[str, str]) -> None:
        """FeatdError where a blob is called like another column."""
        if taken := [name for name in blobs if name in KEYS.names]:
            raise FeatdError(f"blob {taken[0]!r} has the name of another column: use --format hdf5 or npy")
        self._path = path
        self._kinds = dict(blobs)
        self._attributes = dict(attributes)
        schema = KEYS
        for name, kind in blobs.items():
            # A list of a fixed size 0, where no vector is live, is more than most readers understand.
            numbers = pa.list_(pa.from_numpy_dtype(kind.dtype), kind.size or -1)
            schema = schema.append(pa.field(name, numbers, nullable=False))
        self._file = _File(path, schema.with_metadata(self._attributes))
        self._deleted: _File | None = None

    def append(self, images: Sequence[LiveVector], vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        columns = [
            pa.array([image.image_id for image in images], pa.int64()),
            pa.array([to_catalog(os.fsencode(image.root)) for image in images], pa.string()),
            pa.array([image.path for image in images], pa.string()),
            pa.array([image.version for image in images], pa.int32()),
        ]
        for name, kind in self._kinds.items():
            numbers = pa.array(np.ascontiguousarray(vectors[name]).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(numbers, kind.size))
        self._file.write(columns)

    def publish(self, deleted: npt.NDArray[np.int64] | None) -> None:
        """Complete the files and give them their names, the vectors last."""
        if deleted is not None:
            self._deleted = _File(deleted_of(self._path), _DELETED.with_metadata(self._attributes))
            self._deleted.write([pa.array(deleted)])
            self._deleted.complete()
        self._file.complete()
        if self._path.exists():  # it is replaced: what was deleted then is not what is deleted now
            self._path.unlink()
            deleted_of(self._path).unlink(missing_ok=True)
        if self._deleted is not None:
            atomic.publish_part(self._deleted.path)
        atomic.publish_part(self._path)

    def discard(self) -> None:
        self._file.discard()
        if self._deleted is not None:
            self._deleted.discard()


class _File:
    def __init__(self, path: Path, schema: Any) -> None:
        self.path = path
        self._schema = schema
        atomic.remove_part(path)  # left by an export that was killed
        self._raw = os.fdopen(atomic.create_part(path, public=True), "wb")
        # Numbers of vectors hardly shrink, and nobody looks for one: neither compressed nor with statistics.
        keys = [name for name in KEYS.names if name in schema.names]
        self._writer = pq.ParquetWriter(
            self._raw, schema, compression="none", use_dictionary=["root"], write_statistics=keys
        )

    def write(self, columns: Sequence[Any]) -> None:
        """One row group."""
        table = pa.Table.from_arrays(list(columns), schema=self._schema)
        self._writer.write_table(table, row_group_size=max(len(table), 1))

    def complete(self) -> None:
        self._writer.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()

    def discard(self) -> None:
        for file in (self._writer, self._raw):
            with contextlib.suppress(Exception):
                file.close()
        atomic.remove_part(self.path)
