"""Files as scripts write them that make vectors: an HDF5 file with `feats` and `names`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from running import Instance, live_vectors

Vectors = dict[str, np.ndarray[Any, Any]]
"""Path in its root, in catalog form -> vector."""


def script_file(
    path: Path,
    names: Sequence[bytes | str],
    feats: Any,
    *,
    fixed: bool = False,
    datasets: tuple[str, str] = ("feats", "names"),
    **options: Any,
) -> Path:
    """Write one file. `fixed`: names of a fixed length; `options` are those of the dataset of the vectors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = [name if isinstance(name, bytes) else name.encode() for name in names]
    with h5py.File(path, "w") as file:
        file.create_dataset(datasets[0], data=feats, **options)
        if fixed:
            file[datasets[1]] = np.array(raw, f"S{max(map(len, raw))}")
        else:
            file.create_dataset(datasets[1], data=np.array(raw, object), dtype=h5py.string_dtype())
    return path


def vectors_of(instance: Instance) -> Vectors:
    """The live vectors of an instance with one root."""
    return {path: vector for (_, path), vector in live_vectors(instance).items()}


def same(one: Vectors, other: Vectors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
