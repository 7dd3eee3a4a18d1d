"""Vectors of files that were moved or renamed: copied from the shard of their old name, without decoder and net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, corrections, gone
from featd.catalog.gone import KeptVector
from featd.decoders.wire import Hashed
from featd.errors import CatalogUnavailableError
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader
from featd.shards.verify import Verified
from featd.worker.writer import VectorBatch

log = logs.get("worker")


class Moved:
    """Finds the vectors of images that are gone. `blobs`: name -> d. Never raises for a shard or a catalog that cannot
    be read: the images are decoded then."""

    def __init__(
        self,
        catalog: sa.Engine,
        store: Path,
        fingerprint: str,
        blobs: Mapping[str, int],
        verified: Verified,
        beat: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._fingerprint = fingerprint
        self._blobs = dict(blobs)
        self._verified = verified
        self._beat = beat
        self._bad: set[Path] = set()
        self._reader: ShardReader | None = None
        """Of the last shard: the files of a folder come in the order of its rows, and to open it takes milliseconds."""

    def find(self, hashed: Sequence[Hashed]) -> list[VectorBatch]:
        """The vectors of those of `hashed` whose content an image had that is gone now: a batch for each shard."""
        try:
            with connect.reading(self._catalog) as conn:
                kept = gone.kept_vectors(conn, {one.content for one in hashed})
                lacked = corrections.lacked(conn) if kept else {}
        except CatalogUnavailableError:
            return []
        by_shard: dict[tuple[str, str], list[tuple[Hashed, KeptVector]]] = {}
        for one in hashed:
            vector = kept.get(one.content)
            if vector is not None and all(vector.shard_id > lacked.get(name, 0) for name in one.corrected):
                by_shard.setdefault((vector.shard_path, vector.checksum), []).append((one, vector))
        batches = []
        for (path, checksum), found in by_shard.items():
            self._beat()
            found.sort(key=lambda pair: pair[1].shard_row)
            vectors = self._read(self._store / path, checksum, [vector for _, vector in found])
            if vectors is not None:
                batches.append(VectorBatch([one for one, _ in found], vectors))
        return batches

    def _read(
        self, path: Path, checksum: str, kept: Sequence[KeptVector]
    ) -> dict[str, npt.NDArray[np.float32]] | None:
        """Each blob's vectors (n, d); None where the shard is not what the catalog says. A bad one is told and compared
        once."""
        if path in self._bad:
            return None
        rows = np.array([vector.shard_row for vector in kept], np.int64)
        try:
            self._verified.check(path, checksum)
            reader = self._open(path)
            if (reader.attributes.get("fingerprint"), reader.blobs) != (self._fingerprint, self._blobs):
                raise ShardError(f"{path}: holds vectors of another fingerprint")
            ids, _ = reader.keys(rows)
            if ids.tolist() != [vector.image_id for vector in kept]:
                raise ShardError(f"{path}: its rows are not of the images that the catalog says")
            # From float16 to float32 and back changes no bit.
            return {blob: reader.read(blob, rows).astype(np.float32, copy=False) for blob in self._blobs}
        except FileNotFoundError:
            return None  # it may come back, and to look costs nothing
        except (ShardError, OSError) as error:
            self._bad.add(path)
            log.warning(
                "vectors_not_copied",
                "moved files whose vectors are in this shard are extracted again",
                shard=path,
                error=str(error),
            )
            return None

    def _open(self, path: Path) -> ShardReader:
        if self._reader is None or self._reader.path != path:
            self.close()
            self._reader = ShardReader(path)
        return self._reader

    def close(self) -> None:
        """Close the shard that is open, if one is."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
