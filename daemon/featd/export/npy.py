"""An export as a folder of NumPy arrays and text files, or as one array in a stream.

features.npy (n, d), or with several blobs a features-BLOB.npy for each; ids.npy and versions.npy (n,); names.txt and
roots.txt with a line for each row; token.txt; and deleted.npy (k,) in an export since a token.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from featd.catalog.live import LiveVector
from featd.paths import to_catalog
from featd.reader.vectors import Kind
from featd.shards import atomic

FEATURES, NAMES, ROOTS, TOKEN = "features.npy", "names.txt", "roots.txt", "token.txt"
IDS, VERSIONS, DELETED = "ids.npy", "versions.npy", "deleted.npy"


def features_of(blob: str) -> str:
    """The file of one of several blobs. A slash, which no file has in its name, is %2F; so are other odd characters."""
    return f"features-{quote(blob, safe='')}.npy"


class NpySink:
    """The files, in a folder. The vectors appear last, when all others are complete."""

    def __init__(self, folder: Path, blobs: Mapping[str, Kind], attributes: Mapping[str, str]) -> None:
        """Of the attributes, only the token has a place."""
        self._made = not folder.exists()
        self._folder = folder
        self._token = attributes["token"]
        self._features = {name: features_of(name) if len(blobs) > 1 else FEATURES for name in blobs}
        self._files: dict[str, IO[bytes]] = {}
        self._arrays: dict[str, _Array] = {}
        try:
            for name, file in self._features.items():
                self._arrays[file] = _Array(self._create(file), blobs[name].dtype, (blobs[name].size,))
            self._arrays[IDS] = _Array(self._create(IDS), np.dtype(np.int64))
            self._arrays[VERSIONS] = _Array(self._create(VERSIONS), np.dtype(np.int32))
            self._create(NAMES)
            self._create(ROOTS)
        except BaseException:
            self.discard()
            raise

    def _create(self, name: str) -> IO[bytes]:
        atomic.remove_part(self._folder / name)  # left by an export that was killed
        file = os.fdopen(atomic.create_part(self._folder / name, public=True), "wb")
        self._files[name] = file
        return file

    def append(self, images: Sequence[LiveVector], vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, file in self._features.items():
            self._arrays[file].append(vectors[name])
        self._arrays[IDS].append(np.array([image.image_id for image in images], np.int64))
        self._arrays[VERSIONS].append(np.array([image.version for image in images], np.int32))
        for image in images:
            self._files[NAMES].write(image.path.encode() + b"\n")
            self._files[ROOTS].write(to_catalog(os.fsencode(image.root)).encode() + b"\n")

    def publish(self, deleted: npt.NDArray[np.int64] | None) -> None:
        """Complete the files and give them their names."""
        self._create(TOKEN).write(f"{self._token}\n".encode())
        if deleted is not None:
            self._arrays[DELETED] = _Array(self._create(DELETED), np.dtype(np.int64))
            self._arrays[DELETED].append(deleted)
        for array in self._arrays.values():
            array.finish()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        # Old vectors must never be beside new names.
        for old in (*self._folder.glob("features-*.npy"), self._folder / FEATURES, self._folder / DELETED):
            old.unlink(missing_ok=True)
        last = set(self._features.values())
        for name in sorted(self._files, key=lambda name: name in last):
            atomic.publish_part(self._folder / name)

    def discard(self) -> None:
        for name, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
            atomic.remove_part(self._folder / name)
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


class NpyStream:
    """One array, in a stream that need not seek. The header says the number of rows, which is known at the end: until
    then the array is in a temporary file without a name, and nothing is written where the export fails."""

    def __init__(self, stream: IO[bytes], kind: Kind) -> None:
        self._stream = stream
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by publish and discard)
        self._array = _Array(self._file, kind.dtype, (kind.size,))

    def append(self, images: Sequence[LiveVector], vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        for values in vectors.values():
            self._array.append(values)

    def publish(self, deleted: npt.NDArray[np.int64] | None) -> None:
        """Write the array."""
        self._array.finish()
        self._file.seek(0)
        shutil.copyfileobj(self._file, self._stream, 1 << 20)
        self._stream.flush()
        self._file.close()

    def discard(self) -> None:
        self._file.close()


class _Array:
    """An .npy file that grows."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], rest: tuple[int, ...] = ()) -> None:
        """rest: the shape of a row."""
        self._file = file
        self._dtype = dtype
        self._rest = rest
        self._rows = 0
        write_header(file, dtype, (0, *rest))

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        write_header(self._file, self._dtype, (self._rows, *self._rest))


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file. It is equally long for any number of rows: numpy leaves room for the digits."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
