"""Rows that are read from the file without HDF5 are those that HDF5 reads, wherever they are to go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd.shards import blocks
from featd.shards.blocks import Blocks

ROWS = 50
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (8, 3)},
    "with fletcher32": {"chunks": (8, 3), "fletcher32": True},
    "one chunk": {"chunks": (64, 3), "fletcher32": True, "maxshape": (None, 3)},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "rows.h5"
    with h5py.File(path, "w") as made:
        for name, layout in LAYOUTS.items():
            values = np.arange(ROWS * 3, dtype=np.float32).reshape(-1, 3)
            made.create_dataset(name, data=values, **layout)
        made.create_dataset("gzip", data=values, chunks=(8, 3), compression="gzip")
        made.create_dataset("split", data=values, chunks=(8, 2))
        made.create_dataset("unwritten", (ROWS, 3), np.float32, chunks=(8, 3))
        made.create_dataset("none", (0, 3), np.float32, chunks=(8, 3), maxshape=(None, 3))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("most", [1024, 2])
@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True),
    steady=st.booleans(),
    seed=st.integers(0, 9),
)
def test_rows_come_to_their_places(
    file: Path, name: str, most: int, rows: list[int], steady: bool, seed: int
) -> None:
    wanted = np.array(sorted(rows))
    places = np.arange(len(wanted)) + 2
    if not steady:
        np.random.default_rng(seed).shuffle(places)
    out = np.full((len(wanted) + 4, 3), -1, np.float32)
    with h5py.File(file) as opened, pytest.MonkeyPatch.context() as patch, file.open("rb") as raw:
        patch.setattr(blocks, "_MOST_BUFFERS", most)
        found = Blocks.of(opened[name])
        assert found is not None
        found.read(raw.fileno(), wanted, out, places)
    expected = np.full_like(out, -1)
    expected[places] = np.arange(ROWS * 3, dtype=np.float32).reshape(-1, 3)[wanted]
    np.testing.assert_array_equal(out, expected)


def test_what_only_hdf5_can_read(file: Path) -> None:
    with h5py.File(file) as opened:
        assert {name: Blocks.of(opened[name]) for name in ("gzip", "split", "unwritten")} == {
            "gzip": None,
            "split": None,
            "unwritten": None,
        }
        assert Blocks.of(opened["none"]) is not None


def test_a_file_that_has_become_shorter(file: Path, tmp_path: Path) -> None:
    with h5py.File(file) as opened:
        found = Blocks.of(opened["contiguous"])
    assert found is not None
    short = tmp_path / "short"
    short.write_bytes(b"")
    fd = os.open(short, os.O_RDONLY)
    with pytest.raises(OSError, match="shorter"):
        found.read(fd, np.array([1]), np.empty((1, 3), np.float32), np.array([0]))
    os.close(fd)
