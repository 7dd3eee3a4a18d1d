"""An export as features.npy and names.txt in a folder, with roots.txt where there are several roots."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

from featd.export.read import Chunk
from featd.export.sink import Exported
from featd.paths import to_catalog
from featd.shards import atomic

NPY_HEADER_BYTES = 128
"""Fixed, so that it can be written again when the number of rows is known. A multiple of 64, as numpy aligns."""
FEATURES, NAMES, ROOTS = "features.npy", "names.txt", "roots.txt"


class NpySink:
    """features.npy, names.txt and roots.txt, in a folder. features.npy appears last, when all others are complete."""

    def __init__(self, folder: Path) -> None:
        self._made = not folder.exists()
        self._folder = folder
        self._roots: set[str] = set()
        self._files: dict[str, IO[bytes]] = {}
        for name in (FEATURES, NAMES, ROOTS):
            atomic.remove_part(folder / name)  # left by an export that was killed
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


def npy_header(dtype: np.dtype[Any], shape: tuple[int, int]) -> bytes:
    """The first NPY_HEADER_BYTES of an .npy file, format 1.0 (numpy.lib.format describes it)."""
    content = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    length = NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + content.encode().ljust(length - 1) + b"\n"
