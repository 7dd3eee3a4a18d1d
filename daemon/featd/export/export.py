"""Exporting: the live vectors of a catalog, streamed into one file in order of image id.

The catalog is read in chunks, each a snapshot of its own: an image that changes, vanishes or is compacted meanwhile is
in the export as it stood when its chunk was read, or not at all. Nothing appears at its place before it is complete.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import sqlalchemy as sa

from featd.catalog import connect, instance, pairing
from featd.errors import FeatdError, ModelError, NothingMatchedError
from featd.export.hdf5 import Hdf5Sink
from featd.export.npy import NpySink, NpyStream
from featd.reader.vectors import LiveReader


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the blob's name, and the number, size and dtype of its vectors."""

    rows: int
    size: int
    dtype: str
    blob: str


def to_npy(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write OUT/features.npy (n, d), and the name and the root of each row in OUT/names.txt and OUT/roots.txt."""
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise FeatdError(f"{out} exists already: name another place, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise FeatdError(f"{out} is a file: name a folder to create, or use --format hdf5")
    return _export(catalog, store, blob, functools.partial(NpySink, out))


def to_hdf5(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write one file with `feats` (n, d) and `names`, and `root`, `image_id` and `version` beside them."""
    if out.is_dir():
        raise FeatdError(f"{out} is a folder: name a file to create, or use --format npy")
    if out.exists() and not force:
        raise FeatdError(f"{out} exists already: name another place, or replace it with --force")
    return _export(catalog, store, blob, functools.partial(Hdf5Sink, out))


def to_stream(catalog: sa.Engine, store: Path, stream: IO[bytes], *, blob: str | None = None) -> Exported:
    """Write the array of to_npy's features.npy to a stream."""
    return _export(catalog, store, blob, functools.partial(NpyStream, stream))


def _export(
    catalog: sa.Engine,
    store: Path,
    blob: str | None,
    create: Callable[[int, np.dtype[Any]], NpySink | NpyStream | Hdf5Sink],
) -> Exported:
    """Copy all live vectors into the sink that `create` makes for vectors of a size and dtype."""
    with connect.reading(catalog) as conn:
        instance_id = instance.instance_id(conn)
        fingerprint, spec = instance.fingerprint(conn), instance.spec(conn)
    if fingerprint is None or spec is None:
        raise NothingMatchedError("nothing to export: no image is done yet")
    pairing.check(catalog, store, writable=False)
    blob = spec["blobs"][0] if blob is None else blob
    if blob not in spec["blobs"]:
        raise ModelError(f"no blob {blob!r} in this catalog; it has: {', '.join(spec['blobs'])}")
    chunks = LiveReader(catalog, store, blob, fingerprint).chunks()
    first = next(chunks, None)
    if first is None:
        raise NothingMatchedError("nothing to export: no image is done")
    size, dtype = first.vectors.shape[1], first.vectors.dtype
    sink = create(size, dtype)
    try:
        rows = 0
        for chunk in itertools.chain([first], chunks):
            sink.append(chunk)
            rows += len(chunk.images)
        sink.publish(
            {
                "instance": instance_id,
                "fingerprint": fingerprint,
                "spec": json.dumps(spec, sort_keys=True),
                "blobs": json.dumps([blob]),
            }
        )
    except BaseException:
        sink.discard()
        raise
    return Exported(rows, size, str(dtype), blob)
