"""Exporting: the live vectors of a catalog, streamed into one file in order of image id.

The catalog is read in chunks, each a snapshot of its own: an image that changes, vanishes or is compacted meanwhile is
in the export as it stood when its chunk was read, or not at all. Nothing appears at its place before it is complete.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, instance
from featd.errors import FeatdError, ModelError, NothingMatchedError
from featd.export.hdf5 import Hdf5Sink
from featd.export.npy import NpySink
from featd.export.read import read_chunks
from featd.export.sink import Exported, Sink
from featd.shards.layout import ShardError
from featd.shards.store import check_readable


def to_npy(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write OUT/features.npy (n, d) and OUT/names.txt, and OUT/roots.txt where there are several roots."""
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise FeatdError(f"{out} exists already: name another place, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise FeatdError(f"{out} is a file: name a folder to create, or use --format hdf5")
    return _export(catalog, store, blob, lambda: NpySink(out))


def to_hdf5(
    catalog: sa.Engine, store: Path, out: Path, *, blob: str | None = None, force: bool = False
) -> Exported:
    """Write one file with `feats` (n, d) and `names`, and `root`, `image_id` and `version` beside them."""
    if out.is_dir():
        raise FeatdError(f"{out} is a folder: name a file to create, or use --format npy")
    if out.exists() and not force:
        raise FeatdError(f"{out} exists already: name another place, or replace it with --force")
    return _export(catalog, store, blob, lambda: Hdf5Sink(out))


def _export(catalog: sa.Engine, store: Path, blob: str | None, open_sink: Any) -> Exported:
    with connect.reading(catalog) as conn:
        instance_id = instance.instance_id(conn)
        fingerprint, spec = instance.fingerprint(conn), instance.spec(conn)
    if fingerprint is None or spec is None:
        raise NothingMatchedError("nothing to export: no image is done yet")
    check_readable(store, instance_id)
    chosen = _choose(blob, list(spec["blobs"]))
    chunks = read_chunks(catalog, store, chosen, fingerprint)
    first = next(chunks, None)
    if first is None:
        raise NothingMatchedError("nothing to export: no image is done")
    exported = Exported(0, first.vectors.shape[1], str(first.vectors.dtype), chosen)
    sink: Sink = open_sink()
    try:
        rows = 0
        for chunk in itertools.chain([first], chunks):
            if chunk.vectors.shape[1] != exported.size or str(chunk.vectors.dtype) != exported.dtype:
                raise ShardError(
                    f"blob {chosen!r} has {chunk.vectors.shape[1]} numbers ({chunk.vectors.dtype}) in one shard and"
                    f" {exported.size} ({exported.dtype}) in another"
                )
            sink.append(chunk)
            rows += len(chunk.images)
        exported = Exported(rows, exported.size, exported.dtype, chosen)
        attributes = {
            "instance": instance_id,
            "fingerprint": fingerprint,
            "spec": json.dumps(spec, sort_keys=True),
            "blobs": json.dumps([chosen]),
        }
        sink.publish(exported, attributes)
    except BaseException:
        sink.discard()
        raise
    return exported


def _choose(blob: str | None, blobs: Sequence[str]) -> str:
    if blob is None:
        return blobs[0]
    if blob not in blobs:
        raise ModelError(f"no blob {blob!r} in this catalog; it has: {', '.join(blobs)}")
    return blob
