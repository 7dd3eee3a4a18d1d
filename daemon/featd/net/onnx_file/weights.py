"""The large arrays of an ONNX file: in it, or in files beside it, which ONNX calls external data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import onnx

from featd.errors import ModelError
from featd.net import mapped
from featd.net.onnx_file.graph import Graph
from featd.net.onnx_file.structure import LARGE_BYTES
from featd.paths import open_beneath

MOST_FILES: Final = 200
"""Each keeps a descriptor open."""
MOST_BYTES: Final = 1 << 34
"""Of all files of external data together."""
_PACKED: Final = {
    number for name, number in onnx.TensorProto.DataType.items() if name.endswith(("INT4", "INT2", "E2M1"))
}
"""Types with several numbers in a byte."""
_ALIGNED: Final = 4096


def external(graph: Graph, names: Iterable[str]) -> tuple[dict[str, memoryview], dict[str, str]]:
    """The bytes of those of these arrays that are in other files, and the SHA-256 of each such file.

    ModelError where a file is not beneath the folder of the ONNX file, is a link, or is too short.
    """
    places = {
        name: _place(graph, name)
        for name in names
        if graph.arrays[name].data_location == onnx.TensorProto.EXTERNAL
    }
    files: dict[str, memoryview] = {}
    hashes: dict[str, str] = {}
    left = MOST_BYTES
    for file in sorted({file for file, _, _ in places.values()}):
        if len(files) == MOST_FILES:
            raise ModelError(
                f"{graph.source}: its weights are in more than {MOST_FILES} files: make them one, with"
                " onnx.save_model(..., save_as_external_data=True, all_tensors_to_one_file=True)"
            )
        files[file], hashes[file] = _copied(graph.source, file, left)
        left -= len(files[file])
    found = {}
    for name, (file, offset, length) in places.items():
        end = len(files[file]) if length is None else offset + length
        if end > len(files[file]) or offset > end:
            raise ModelError(
                f"{graph.source}: array {name!r} is at {offset:,} to {end:,} of {file!r}, which has"
                f" {len(files[file]):,} bytes: copy that file again"
            )
        found[name] = files[file][offset:end]
    return found, hashes


def _place(graph: Graph, name: str) -> tuple[str, int, int | None]:
    """(file, offset, length) of an array. ModelError where they are not usable."""
    entries = {entry.key: entry.value for entry in graph.arrays[name].external_data}
    file = entries.get("location", "")
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if not file or any(
        text and not (text.isascii() and text.isdigit() and len(text) < 20) for text in numbers
    ):
        raise ModelError(
            f"{graph.source}: array {name!r} does not say where its numbers are: export it again"
        )
    return os.path.normpath(file), int(numbers[0] or 0), int(numbers[1]) if numbers[1] else None


def _copied(source: str, file: str, most_bytes: int) -> tuple[memoryview, str]:
    folder = Path(source).absolute().parent
    named = f"{source}: its weights are in {file!r}"
    if file.startswith(("/", "../")) or file == "..":
        raise ModelError(f"{named}, and featd reads weights only beneath the folder of the ONNX file")
    root = -1
    try:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with open(open_beneath(root, os.fsencode(file)), "rb") as opened:  # noqa: PTH123
            size = os.fstat(opened.fileno()).st_size
            if size > most_bytes:
                raise ModelError(f"{named}, which has {size:,} bytes; featd reads {MOST_BYTES:,} in all")
            return mapped.copied(opened, str(folder / file))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"{named}, which cannot be read: {told} (it must be a file in the folder of the ONNX file or below, and no"
            " symbolic link)"
        ) from None
    finally:
        if root >= 0:
            os.close(root)


def check_lengths(graph: Graph, names: Iterable[str], large: dict[str, memoryview]) -> None:
    """ModelError where an array's bytes are not as many as its shape says."""
    for name in names:
        tensor, data = graph.arrays[name], large.get(name)
        numbers = math.prod(tensor.dims) if min(tensor.dims, default=0) >= 0 else -1
        if data is None:  # within the structure, which is small
            right = 0 <= numbers <= LARGE_BYTES * 8 or numbers <= tensor.ByteSize()
        elif tensor.data_type in _PACKED:
            right = 0 <= numbers <= 8 * len(data)
        else:
            right = numbers * _size(tensor.data_type) == len(data)
        if data is not None and name in graph.large and graph.large[name].floats:
            right &= tensor.data_type == onnx.TensorProto.FLOAT
        if not right:
            held = tensor.ByteSize() if data is None else len(data)
            raise ModelError(
                f"{graph.source}: array {name!r} of shape {tuple(tensor.dims)} has {held:,} bytes: the file is damaged"
            )


def _size(kind: int) -> int:
    """Bytes of a number of this type; 0: no type of numbers."""
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:
        return 0


def fill(model: Any, large: dict[str, memoryview], apart: Path | None) -> None:
    """Give the model's empty arrays their numbers: in the model, or, where there is a folder `apart`, in one file
    there. OSError where it cannot be written."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in large]
    if apart is None:
        for tensor in tensors:
            tensor.raw_data = bytes(large[tensor.name])
        return
    with Path(apart, "weights").open("wb") as file:
        for tensor in tensors:
            file.seek(-file.tell() % _ALIGNED, os.SEEK_CUR)  # to be mapped
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights"),
                ("offset", file.tell()),
                ("length", len(large[tensor.name])),
            ):
                tensor.external_data.add(key=key, value=str(value))
            file.write(large[tensor.name])
