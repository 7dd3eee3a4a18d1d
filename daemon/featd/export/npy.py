"""An export as features.npy, names.txt and roots.txt in a folder, or as the array alone in a stream."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from featd.paths import to_catalog
from featd.reader.vectors import Chunk
from featd.shards import atomic

FEATURES, NAMES, ROOTS = "features.npy", "names.txt", "roots.txt"


class NpySink:
    """features.npy, names.txt and roots.txt, in a folder. features.npy appears last, when all others are complete."""

    def __init__(self, folder: Path, size: int, dtype: np.dtype[Any]) -> None:
        self._made = not folder.exists()
        self._folder = folder
        self._size = size
        self._dtype = dtype
        self._rows = 0
        self._files: dict[str, IO[bytes]] = {}
        for name in (FEATURES, NAMES, ROOTS):
            atomic.remove_part(folder / name)  # left by an export that was killed
            self._files[name] = os.fdopen(atomic.create_part(folder / name, public=True), "wb")
        write_header(self._files[FEATURES], dtype, (0, size))

    def append(self, chunk: Chunk) -> None:
        self._files[FEATURES].write(np.ascontiguousarray(chunk.vectors).data)
        for image in chunk.images:
            self._files[NAMES].write(image.path.encode() + b"\n")
            self._files[ROOTS].write(to_catalog(os.fsencode(image.root)).encode() + b"\n")
        self._rows += len(chunk.images)

    def publish(self, attributes: dict[str, str]) -> None:
        """Complete the files and give them their names. `attributes` have no place in them."""
        self._files[FEATURES].seek(0)
        write_header(self._files[FEATURES], self._dtype, (self._rows, self._size))
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        (self._folder / FEATURES).unlink(missing_ok=True)  # old vectors must never be beside new names
        atomic.publish_part(self._folder / NAMES)
        atomic.publish_part(self._folder / ROOTS)
        atomic.publish_part(self._folder / FEATURES)

    def discard(self) -> None:
        for name, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
            atomic.remove_part(self._folder / name)
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


class NpyStream:
    """The array alone, in a stream that need not seek. The header says the number of rows, which is known at the end:
    until then the array is in a temporary file without a name, and nothing is written where the export fails."""

    def __init__(self, stream: IO[bytes], size: int, dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self._size = size
        self._dtype = dtype
        self._rows = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by publish and discard)
        write_header(self._file, dtype, (0, size))

    def append(self, chunk: Chunk) -> None:
        self._file.write(np.ascontiguousarray(chunk.vectors).data)
        self._rows += len(chunk.images)

    def publish(self, attributes: dict[str, str]) -> None:
        """Write the array. `attributes` have no place in it."""
        self._file.seek(0)
        write_header(self._file, self._dtype, (self._rows, self._size))
        self._file.seek(0)
        shutil.copyfileobj(self._file, self._stream, 1 << 20)
        self._stream.flush()
        self._file.close()

    def discard(self) -> None:
        self._file.close()


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    """Write the header of an .npy file. It is equally long for any number of rows: numpy leaves room for the digits."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
