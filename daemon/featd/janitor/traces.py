"""Where the store has vectors of images that are to be forgotten: every file is looked through by the names, roots and
hashes of its rows, since no index tells in which shards an image ever was. Reads no vector and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from featd.catalog import compact, connect, forget, leases, stats
from featd.catalog.compact import OldShard
from featd.catalog.forget import Target
from featd.errors import reason
from featd.janitor.leftovers import BATCH_FILES, shard_files, shards_in
from featd.paths import from_catalog
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.shards.store import shards_folder, unknown_folder
from featd.states import Lease

PAGE = 500
RETURNS = "the catalog knows it, and featd brings it back from `unknown` when it runs: forget again then"


@dataclass(slots=True)
class Found:
    """What one look has found. `rewrite`: shards that are to be rewritten; `remove`: files that nobody needs.
    `contents`: the hashes of all files that these paths ever were."""

    vectors: int = 0
    rewrite: list[OldShard] = field(default_factory=list)
    remove: list[Path] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)
    """File -> why it could not be looked through."""


class Traces:
    """Looks for rows of `targets`, and for rows of `contents` that no image names. `images`: the rows of these images
    count as if no image named them."""

    def __init__(
        self,
        catalog: sa.Engine,
        store: Path,
        targets: Collection[Target],
        contents: Collection[str],
        images: Collection[int] = (),
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._contents = frozenset(contents)
        self._images = frozenset(images)
        self._paths: dict[bytes, set[bytes]] = {}
        for target in targets:
            self._paths.setdefault(os.fsencode(target.root), set()).add(from_catalog(target.path))
        self._clean: set[str] = set()
        """Files without such a row. A shard never changes, so that a second look need not open them."""
        self.found = Found()
        self.looked = 0
        """Shards of the catalog that this look has seen."""

    def look(self) -> Generator[None]:
        """One look, in steps of a file each."""
        self.found, self.looked = Found(), 0
        for page in connect.walk(self._catalog, forget.shards_after, lambda one: one.shard.id, 0, PAGE):
            for shard, retired in page:
                self.looked += 1
                if shard.path not in self._clean:
                    self._look_at(shard, retired)
                    yield
        for path, known in self._unsettled():
            self._look_at_unsettled(path, known)
            yield

    def _look_at(self, shard: OldShard, retired: bool) -> None:
        path = self._store / shard.path
        try:
            rows = self._rows(path)
        except FileNotFoundError:
            return
        except (ShardError, OSError) as error:
            if retired:
                self.found.remove.append(path)
            elif shard.live_rows == 0:
                self.found.rewrite.append(shard)  # nothing of it is needed
            else:
                self.found.unreadable[shard.path] = reason(error)
            return
        if rows and not retired:
            with connect.reading(self._catalog) as conn:
                named = compact.rows_that_name(conn, shard.id, list(rows.values()))
            rows = {row: one for row, one in rows.items() if named.get(one) != row or one in self._images}
            if rows:
                self.found.rewrite.append(shard)
        elif rows:
            self.found.remove.append(path)
        else:
            self._clean.add(shard.path)
        self.found.vectors += len(rows)

    def _look_at_unsettled(self, path: Path, known: bool) -> None:
        place = str(path.relative_to(self._store))
        if place in self._clean:
            return
        if ShardName.parse(path.name) is None:
            self.found.remove.append(path)  # what a worker that died had not finished
            return
        try:
            rows = self._rows(path)
        except FileNotFoundError:
            return
        except ShardError:
            self.found.remove.append(path)  # nobody can tell what it has, and nobody can use it
            return
        except OSError as error:
            self.found.unreadable[place] = reason(error)
            return
        if not rows:
            self._clean.add(place)
        elif known:
            self.found.unreadable[place] = RETURNS
        else:
            self.found.remove.append(path)
            self.found.vectors += len(rows)

    def _unsettled(self) -> Iterator[tuple[Path, bool]]:
        """The files that no row names, of leases that can settle no more; and those in `unknown`, with whether the
        catalog knows them."""
        files = shard_files(shards_folder(self._store))
        while some := list(islice(files, BATCH_FILES)):
            with connect.reading(self._catalog) as conn:
                over = [not leases.may_settle(conn, Lease(name.lease_id, name.token)) for _, name in some]
            # A new transaction sees everything that an ended lease committed before it ended.
            with connect.reading(self._catalog) as conn:
                known = stats.known_shards(conn, [path.name for path, _ in some])
            yield from (
                (path, False)
                for (path, _), is_over in zip(some, over, strict=True)
                if is_over and path.name not in known
            )
        for names in shards_in(unknown_folder(self._store)):
            with connect.reading(self._catalog) as conn:
                known = stats.known_shards(conn, [name.file_name for name in names])
            for name in names:
                yield unknown_folder(self._store) / name.file_name, name.file_name in known

    def _rows(self, path: Path) -> dict[int, int]:
        """The rows of a file that are looked for, with their image ids. ShardError; OSError."""
        with ShardReader(path) as reader:
            contents = reader.contents()
            rows = []
            for row, (root, name) in enumerate(zip(reader.roots(), reader.names(), strict=True)):
                if self._is_target(root, name):
                    self.found.contents.add(contents[row])
                elif contents[row] not in self._contents:
                    continue
                rows.append(row)
            ids, _ = reader.keys(np.array(rows, np.int64))
        return dict(zip(rows, ids.tolist(), strict=True))

    def _is_target(self, root: bytes, name: bytes) -> bool:
        """Whether the file, a folder above it, or its root is a target."""
        paths = self._paths.get(root, ())
        end = len(name)
        while end > 0:
            if name[:end] in paths:
                return True
            end = name.rfind(b"/", 0, end)
        return b"" in paths
