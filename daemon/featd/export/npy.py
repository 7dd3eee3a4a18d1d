"""An export as features.npy and names.txt in a folder, with roots.txt where there are several roots."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from featd.export.read import Chunk
from featd.paths import to_catalog
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
        self._roots: set[str] = set()
        self._files: dict[str, IO[bytes]] = {}
        for name in (FEATURES, NAMES, ROOTS):
            atomic.remove_part(folder / name)  # left by an export that was killed
            self._files[name] = os.fdopen(atomic.create_part(folder / name), "wb")
        write_header(self._files[FEATURES], dtype, (0, size))

    def append(self, chunk: Chunk) -> None:
        self._files[FEATURES].write(np.ascontiguousarray(chunk.vectors).data)
        for image in chunk.images:
            self._roots.add(image.root)
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


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    """Write the header of an .npy file. It is equally long for any number of rows: numpy leaves room for the digits."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
