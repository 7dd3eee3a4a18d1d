"""A script's HDF5 file: what is read of it, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featd.adopt.script_file import ScriptFile
from featd.shards.layout import ShardError
from scripts import script_file

NAMES = [b"a.jpg", b"b.jpg", b"caf\xe9.jpg"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((3, 4), "<f4", {}),
        ((3, 4, 1, 1), "<f4", {}),
        ((3, 1, 2, 2), ">f4", {}),
        ((3, 4), "<f2", {}),
        ((3, 4), "<f8", {"compression": "gzip", "shuffle": True, "fletcher32": True}),
        ((3, 4), "<f4", {"compression": "lzf"}),
        ((3, 4), "<f4", {"chunks": (2, 3), "maxshape": (None, 4)}),
    ],
)
def test_what_scripts_write_is_read(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, options: dict[str, Any], fixed: bool
) -> None:
    path = script_file(tmp_path / "x.h5", NAMES, VECTORS.reshape(shape).astype(dtype), fixed=fixed, **options)
    with ScriptFile(path, "feats", "names") as file:
        assert (file.rows, file.width, file.made_at_ns) == (3, 4, path.stat().st_mtime_ns)
        assert file.names(0, 3) == NAMES
        assert file.names(1, 2) == NAMES[1:2]
        read = file.vectors(1, 3)
        assert read.dtype == np.float32
        assert read.dtype.isnative
        assert np.array_equal(read, VECTORS[1:])


def test_numbers_of_64_bits_are_rounded_to_nearest(tmp_path: Path) -> None:
    values = np.array([[0.1, 1 + 2**-24, 1 + 3 * 2**-25, 1e39]])
    with ScriptFile(script_file(tmp_path / "x.h5", [b"a"], values), "feats", "names") as file:
        assert file.vectors(0, 1).tolist() == [[float(np.float32(0.1)), 1.0, 1 + 2.0**-23, np.inf]]


def test_names_in_a_column_and_datasets_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["run/fc7"] = VECTORS
        file["list"] = np.array(NAMES).reshape(3, 1)
    with ScriptFile(path, "run/fc7", "list") as opened:
        assert opened.names(0, 3) == NAMES
        assert np.array_equal(opened.vectors(0, 3), VECTORS)


def external_link(file: h5py.File) -> None:
    file["feats"] = h5py.ExternalLink("other.h5", "feats")


def soft_link(file: h5py.File) -> None:
    file["more"] = h5py.SoftLink("/feats")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("feats", (3, 4), "<f4", external=[("/etc/passwd", 0, 48)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "feats", (3, 4))
    file.create_virtual_dataset("feats", layout)


def bomb(file: h5py.File) -> None:
    file.create_dataset("feats", (3, 2**40), "<f4", chunks=(1, 1024), compression="gzip")


def scalar(file: h5py.File) -> None:
    file["feats"] = np.float32(3)


def one_dimension(file: h5py.File) -> None:
    file["feats"] = VECTORS[:, 0]


def whole_numbers(file: h5py.File) -> None:
    file["feats"] = VECTORS.astype(int)


def fewer(file: h5py.File) -> None:
    file["feats"] = VECTORS[:2]


def empty(file: h5py.File) -> None:
    file["feats"] = h5py.Empty("f4")


def group(file: h5py.File) -> None:
    file.create_group("feats")


def number_names(file: h5py.File) -> None:
    file["feats"] = VECTORS
    del file["names"]
    file["names"] = np.arange(3)


def two_names(file: h5py.File) -> None:
    file["feats"] = VECTORS
    del file["names"]
    file["names"] = np.array([NAMES, NAMES]).T


def unwritten(file: h5py.File) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_link, "link to somewhere else"),
        (soft_link, "link to somewhere else"),
        (external_storage, "keeps its values in other files"),
        (virtual, "keeps its values in other files"),
        (bomb, "declares"),
        (scalar, "shape"),
        (one_dimension, "shape"),
        (whole_numbers, "not float16"),
        (fewer, "each vector needs one name"),
        (empty, "is empty"),
        (group, "no dataset 'feats'"),
        (number_names, "not strings"),
        (two_names, "each vector needs one name"),
        (unwritten, "its datasets: 'names'"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["feats"] = VECTORS
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("names", data=NAMES, dtype=h5py.string_dtype())
        change(file)
    with pytest.raises(ShardError, match=words) as error:
        ScriptFile(path, "feats", "names")
    assert str(path) in str(error.value)


def test_bytes_that_are_no_file_of_a_script(tmp_path: Path) -> None:
    """Cut anywhere, or with a byte changed anywhere: an error of its own, or the file as it is."""
    path = script_file(tmp_path / "x.h5", NAMES, VECTORS, chunks=(1, 4), fletcher32=True)
    whole = path.read_bytes()
    dice = np.random.default_rng(5)
    refused = 0
    for at in dice.integers(0, len(whole), 300).tolist():
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            path.write_bytes(data)
            try:
                with ScriptFile(path, "feats", "names") as file:
                    file.names(0, file.rows)
                    file.vectors(0, file.rows)
            except ShardError:
                refused += 1
    assert refused > 300


def test_a_file_that_is_not_there_or_not_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ScriptFile(tmp_path / "none.h5", "feats", "names")
    with pytest.raises(IsADirectoryError):
        ScriptFile(tmp_path, "feats", "names")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        ScriptFile(tmp_path / "fifo", "feats", "names")
