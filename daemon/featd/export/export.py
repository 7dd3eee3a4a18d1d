"""Exporting: the live vectors of a catalog, or what became of them since a token, streamed into files for others.

The catalog is read in pages, each a snapshot of its own: an image that changes, vanishes or is compacted meanwhile is
in the export as it stood when its page was read, or not at all; the token, which is taken before, leads to it. Nothing
appears at its place before it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd.catalog import connect, counters, feed, instance, live, pairing
from featd.catalog.feed import Token
from featd.catalog.live import LiveVector
from featd.errors import FeatdError, ModelError, NothingMatchedError
from featd.export.hdf5 import Hdf5Sink
from featd.export.npy import NpySink, NpyStream
from featd.paths import for_terminal
from featd.progress import Advance, silent
from featd.reader.vectors import Chunk, Kind, LiveReader
from featd.states import State

CHUNK_BYTES = 30_000_000
"""Of vectors in memory at a time."""
CHANGES = 1000
"""Changes that are read from the feed at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be exported, and how."""

    blobs: Sequence[str] = ()
    """Empty: the first."""
    all_blobs: bool = False
    since: str | None = None
    """A token: only the images that have changed since."""
    l2: bool = False
    """Whether each vector is divided by its Euclidean norm; a vector of zeros stays as it is."""
    dtype: str | None = None
    """float16 or float32; None: as stored."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `rows` vectors of each of the blobs."""

    rows: int
    blobs: Mapping[str, Kind]
    deleted: int | None
    """How many ids are among the deleted ones; None where all live vectors were asked for."""
    token: str
    """Where the feed stood before the vectors were read."""


class Sink(Protocol):
    """Where an export goes to. `publish` gives the files their names, `discard` leaves nothing."""

    def append(self, images: Sequence[LiveVector], vectors: Mapping[str, npt.NDArray[Any]]) -> None: ...

    def publish(self, deleted: npt.NDArray[np.int64] | None) -> None: ...

    def discard(self) -> None: ...


Create = Callable[[Mapping[str, Kind], Mapping[str, str]], Sink]
"""Makes the sink for vectors of these kinds, with these attributes."""


def to_npy(
    catalog: sa.Engine,
    store: Path,
    out: Path,
    wanted: Wanted = Wanted(),
    *,
    force: bool = False,
    advance: Advance = silent,
) -> Exported:
    """Write a folder: see featd.export.npy."""
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise _exists(out)
    if out.exists() and not out.is_dir():
        raise FeatdError(f"{out} is a file: name a folder to create, or use --format hdf5 or parquet")
    return _export(catalog, store, wanted, advance, lambda blobs, about: NpySink(out, blobs, about))


def to_hdf5(
    catalog: sa.Engine,
    store: Path,
    out: Path,
    wanted: Wanted = Wanted(),
    *,
    force: bool = False,
    advance: Advance = silent,
) -> Exported:
    """Write one HDF5 file: see featd.export.hdf5."""
    _check_file(out, force)
    return _export(catalog, store, wanted, advance, lambda blobs, about: Hdf5Sink(out, blobs, about))


def to_parquet(
    catalog: sa.Engine,
    store: Path,
    out: Path,
    wanted: Wanted = Wanted(),
    *,
    force: bool = False,
    advance: Advance = silent,
) -> Exported:
    """Write one Parquet file: see featd.export.parquet. FeatdError where pyarrow is not installed."""
    from featd.export import parquet  # pyarrow is an extra

    _check_file(out, force)
    if wanted.since is not None:
        _check_file(parquet.deleted_of(out), force)
    return _export(
        catalog, store, wanted, advance, lambda blobs, about: parquet.ParquetSink(out, blobs, about)
    )


def to_stream(
    catalog: sa.Engine,
    store: Path,
    stream: IO[bytes],
    wanted: Wanted = Wanted(),
    *,
    advance: Advance = silent,
) -> Exported:
    """Write the array of to_npy's features.npy to a stream. FeatdError where one array is not enough."""
    if wanted.since is not None:
        raise FeatdError("the deleted ids of --since have no place on standard output: name a folder")

    def create(blobs: Mapping[str, Kind], about: Mapping[str, str]) -> NpyStream:
        if len(blobs) != 1:
            raise FeatdError("only one blob can be written to standard output: name a folder")
        (kind,) = blobs.values()
        return NpyStream(stream, kind)

    return _export(catalog, store, wanted, advance, create)


def _check_file(out: Path, force: bool) -> None:
    if out.is_dir():
        raise FeatdError(f"{out} is a folder: name a file to create, or use --format npy")
    if out.exists() and not force:
        raise _exists(out)


def _exists(out: Path) -> FeatdError:
    return FeatdError(f"{out} exists already: name another place, or replace it with --force")


def _export(catalog: sa.Engine, store: Path, wanted: Wanted, advance: Advance, create: Create) -> Exported:
    """Copy the vectors that are wanted into the sink."""
    with connect.reading(catalog) as conn:
        about = {"instance": instance.instance_id(conn)}
        fingerprint, spec = instance.fingerprint(conn), instance.spec(conn)
        token = feed.now(conn)
        total = counters.counts(conn)[State.DONE]
    if fingerprint is None or spec is None:
        raise NothingMatchedError("nothing to export: no image is done yet")
    pairing.check(catalog, store, writable=False)
    changed = None
    if wanted.since is not None:
        changed, token = _changed(catalog, Token.parse(wanted.since))
        about["since"] = wanted.since
    reader = LiveReader(catalog, store)
    try:
        known = dict(reader.blobs)
        if not known and changed is None:
            raise NothingMatchedError("nothing to export: no image is done")
        stored = _kinds(known or {name: Kind(0, np.dtype(np.float32)) for name in spec["blobs"]}, wanted)
        blobs = {name: Kind(kind.size, np.dtype(wanted.dtype or kind.dtype)) for name, kind in stored.items()}
        about |= {
            "fingerprint": fingerprint,
            "spec": json.dumps(spec, sort_keys=True),
            "blobs": json.dumps(list(blobs)),
            "token": str(token),
        }
        if wanted.l2:
            about["l2"] = "true"
        sink = create(blobs, about)
        try:
            rows = 0
            # Where no vector was live, none of these is: what has become live meanwhile comes after the token.
            gone = [] if known or changed is None else [changed]
            for chunk in _chunks(catalog, reader, list(blobs), changed, gone) if known else ():
                sink.append(
                    chunk.images,
                    {
                        name: _finished(vectors, name, chunk.images, wanted.l2, blobs[name].dtype)
                        for name, vectors in chunk.vectors.items()
                    },
                )
                rows += len(chunk.images)
                advance("exporting", rows, total if changed is None else len(changed))
            deleted = None if changed is None else np.concatenate([np.empty(0, np.int64), *gone])
            sink.publish(deleted)
        except BaseException:
            sink.discard()
            raise
    finally:
        reader.close()
    return Exported(rows, blobs, None if deleted is None else len(deleted), str(token))


def _kinds(known: Mapping[str, Kind], wanted: Wanted) -> dict[str, Kind]:
    """The blobs that are wanted. ModelError where there is no such blob."""
    if missing := [name for name in wanted.blobs if name not in known]:
        raise ModelError(f"no blob {missing[0]!r} in this catalog; it has: {', '.join(known)}")
    return {name: known[name] for name in (known if wanted.all_blobs else wanted.blobs or list(known)[:1])}


def _changed(catalog: sa.Engine, token: Token) -> tuple[npt.NDArray[np.int64], Token]:
    """The ids of the images that have changed since a token, in order, and the token to go on with. TokenError."""
    found = [np.empty(0, np.int64)]
    left = True
    while left:
        with connect.reading(catalog) as conn:
            portion = feed.portion(conn, token, CHANGES)
        found.append(np.fromiter(portion.image_ids, np.int64, len(portion.image_ids)))
        token, left = portion.token, portion.left
    return np.unique(np.concatenate(found)), token


def _chunks(
    catalog: sa.Engine,
    reader: LiveReader,
    blobs: Sequence[str],
    changed: npt.NDArray[np.int64] | None,
    gone: list[npt.NDArray[np.int64]],
) -> Iterator[Chunk]:
    """The vectors of all live images, or of those that have changed; the others of these are added to `gone`."""
    if changed is None:
        yield from reader.chunks(blobs, reader.rows_of(blobs, CHUNK_BYTES))
        return
    rows = reader.rows_of(blobs, CHUNK_BYTES)
    for start in range(0, len(changed), rows):
        ids = changed[start : start + rows]
        with connect.reading(catalog) as conn:
            images = live.live_of(conn, ids.tolist())
        chunk = reader.vectors_of(images, blobs)
        if chunk.images:
            yield chunk
        gone.append(np.setdiff1d(ids, [image.image_id for image in chunk.images]).astype(np.int64))


def _finished(
    vectors: npt.NDArray[Any], blob: str, images: Sequence[LiveVector], l2: bool, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The vectors (n, d) as they are exported. FeatdError where a value is too large for float16."""
    if l2:
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        vectors = vectors / np.where(norms == 0, 1, norms)[:, None]
    with np.errstate(over="ignore"):
        finished = vectors.astype(dtype, copy=False)
    if dtype == np.float16 and (bad := np.flatnonzero(~np.isfinite(finished).all(axis=1))).size:
        image = images[bad[0]]
        raise FeatdError(
            f"{for_terminal(image.path)} (image {image.image_id}): blob {blob!r} has a value beyond 65504, the largest"
            " of float16: use --dtype float32, or --l2"
        )
    return finished
