"""Keeping an index: made from the shards where there is none or it cannot be used, else changed as the feed says."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, counters, feed, instance, live
from featd.catalog.feed import Token
from featd.catalog.live import LiveVector
from featd.errors import ModelError, NothingMatchedError, TokenError
from featd.index import files
from featd.index.files import Appender, Head, IndexDamagedError
from featd.index.index import Index, encoded, is_large
from featd.progress import Advance, silent
from featd.reader.vectors import Chunk, LiveReader
from featd.shards.layout import ShardError
from featd.shards.store import refuse_root
from featd.states import State

log = logs.get("index")

CHANGES = 100
"""Changes that are looked up at once."""
SAVED_BYTES = 256 * 1024 * 1024
"""Of new vectors in memory, before they are written."""
READ_BYTES = 30_000_000
"""Of vectors that are read at once."""


class Keeper:
    """Makes, opens and updates the index of a blob. Vectors in shards that are missing or damaged are left out of it:
    `unreadable` says which."""

    def __init__(
        self, catalog: sa.Engine, store: Path, blob: str | None = None, advance: Advance = silent
    ) -> None:
        """blob: the first one if None. NothingMatchedError while no image is done; ModelError."""
        with connect.reading(catalog) as conn:
            self._instance = instance.instance_id(conn)
            fingerprint, spec = instance.fingerprint(conn), instance.spec(conn)
        if fingerprint is None or spec is None:
            raise NothingMatchedError("nothing to search: no image is done yet")
        self.blob = spec["blobs"][0] if blob is None else blob
        if self.blob not in spec["blobs"]:
            raise ModelError(f"no blob {self.blob!r} in this catalog; it has: {', '.join(spec['blobs'])}")
        self.folder = files.folder_of(store, self.blob)
        self.unreadable: dict[str, str] = {}
        self._catalog = catalog
        self._store = store
        self.fingerprint = fingerprint
        self._advance = advance
        self._reader = LiveReader(catalog, store)

    def open(self) -> Index | None:
        """The index as it is in the store, with the changes since in memory; None where there is none that can be used.
        Rights to read suffice."""
        try:
            index = Index.open(self.folder)
        except IndexDamagedError as error:
            log.warning("index_damaged", "the index is damaged; it is made anew", error=str(error))
            return None
        usable = index is not None and self._is_ours(index) and self.catch_up(index)
        return index if usable else None

    def catch_up(self, index: Index, *, save: bool = False) -> bool:
        """Change `index` as the feed says; False where the feed does not go back so far, or the catalog was restored.
        save: also write it, by the only writer."""
        stored = Token.parse(index.head.token)
        reached = index.reached or stored
        left = True
        while left:
            try:
                with connect.reading(self._catalog) as conn:
                    found = feed.changes(conn, reached, CHANGES)
            except TokenError:
                return False
            index.remove([one.image_id for one in found.deleted])
            changed = index.outdated(found.upserts)
            index.remove([one.image_id for one in changed])
            with closing(self._reader):
                for chunk in self._readable(changed):
                    index.replace(
                        [one.image_id for one in chunk.images],
                        [one.version for one in chunk.images],
                        self._floats(chunk),
                    )
            index.reached = reached = found.token
            left = found.left
            if save and (index.changed_bytes > SAVED_BYTES or (not left and reached != stored)):
                index.save(str(reached))
        return True

    def update(self, *, anew: bool = False) -> Index:
        """Bring the index in the store up to date, or make it. Waits for another writer. StoreUnavailableError;
        ConfigError where root works on the store of another user."""
        refuse_root(self._store)
        with files.locked(self.folder):
            try:
                index = None if anew else Index.open(self.folder)
                if index is not None and self._is_ours(index) and not index.is_worn:
                    followed = self.catch_up(index, save=True)
                    if followed and not index.is_worn:
                        return index
            except IndexDamagedError as error:
                log.warning("index_damaged", "the index is damaged; it is made anew", error=str(error))
                files.clear(self.folder)
            return self._make()

    def vector_of(self, image: LiveVector) -> npt.NDArray[np.float32] | None:
        """The vector (d,) of an image; None where it is live no more, or in a shard that cannot be read."""
        try:
            with closing(self._reader):
                chunk = self._reader.vectors_of([image], (self.blob,))
        except ShardError:
            return None
        return self._floats(chunk)[0] if chunk.images else None

    def _make(self) -> Index:
        with connect.reading(self._catalog) as conn:
            token, rows = feed.now(conn), counters.counts(conn)[State.DONE]
        with closing(self._reader):
            head, table = self._write(str(token), rows)
        head = files.publish(self.folder, head, table, None, None)
        index = Index(self.folder, head, files.Stored(self.folder, head))
        if head.dtype == "float16":
            self._advance("making the lists", 0, 0)
            index.make_lists()
        self.catch_up(index, save=True)
        return index

    def _write(self, token: str, rows: int) -> tuple[Head, npt.NDArray[Any]]:
        """Write all live vectors, about `rows` of them, and make their table."""
        first = next(self._chunks(1), None)
        if first is None:
            for why in self.unreadable.values():
                raise ShardError(f"nothing to search: no shard can be read, such as {why}")
            raise NothingMatchedError("nothing to search: no image is done")
        size = self._floats(first).shape[1]
        dtype = "float16" if is_large(rows, size) else "float32"
        name = f"{files.VECTORS}-{secrets.token_hex(4)}"
        head = Head(self._instance, self.fingerprint, self.blob, token, dtype, size, vectors=name)
        tables = []
        appender = Appender(self.folder, head)
        try:
            for chunk in self._chunks(max(1, READ_BYTES // (4 * size))):
                stored, lines = encoded(self._floats(chunk), dtype)
                lines["id"] = [one.image_id for one in chunk.images]
                lines["version"] = [one.version for one in chunk.images]
                appender.append(stored)
                tables.append(lines)
                self._advance("reading vectors", appender.rows, rows)
            appender.finish()
        finally:
            appender.close()
        return head, np.concatenate(tables)

    def _floats(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """The vectors (n, d) of a chunk."""
        return chunk.vectors[self.blob].astype(np.float32, copy=False)

    def _is_ours(self, index: Index) -> bool:
        head = index.head
        return (head.instance, head.fingerprint, head.blob) == (self._instance, self.fingerprint, self.blob)

    def _chunks(self, rows: int) -> Iterator[Chunk]:
        """All live vectors that can be read, about `rows` at a time."""
        for images in live.walk_live(self._catalog, rows):
            yield from self._readable(images)

    def _readable(self, images: Sequence[LiveVector]) -> Iterator[Chunk]:
        """The vectors of those of `images` that are live, and in a shard that can be read."""
        images = [one for one in images if one.shard_path not in self.unreadable]
        if not images:
            return
        try:
            chunk = self._reader.vectors_of(images, (self.blob,))
        except ShardError as error:
            shards = sorted({one.shard_path for one in images})
            if len(shards) == 1:
                self.unreadable[shards[0]] = str(error)
                log.warning("shard_left_out", "the index lacks the vectors of a shard", error=str(error))
                return
            for shard in shards:
                yield from self._readable([one for one in images if one.shard_path == shard])
        else:
            if chunk.images:
                yield chunk


def update_all(catalog: sa.Engine, store: Path) -> None:
    """Bring the index of the first blob up to date, and every other one that there is. As `Keeper.update`."""
    with connect.reading(catalog) as conn:
        spec = instance.spec(conn)
    for at, blob in enumerate((spec or {}).get("blobs", ())):
        if at == 0 or (files.folder_of(store, blob) / files.HEAD).exists():
            Keeper(catalog, store, blob).update()
