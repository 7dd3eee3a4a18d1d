"""Forgetting: afterwards no file of the store has a vector of the images that a user wants out of it for good.

The order makes it safe: a note in the catalog says what is forgotten; then the rows of the images go; then each shard
with a vector of theirs is rewritten without it, and the old file is removed at once; then the note goes. A death at any
moment leaves the note, and whoever finds it goes on: the janitor, or the next `featd forget`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, corrections, forget
from featd.catalog.compact import OldShard
from featd.catalog.forget import Note
from featd.config import StoreConfig
from featd.crash_points import CrashPoint, crash_point
from featd.errors import LeaseLostError, reason
from featd.index.files import IndexBusyError, remove_indexes
from featd.janitor.compaction import Hold
from featd.janitor.merge import Merger
from featd.janitor.traces import Traces
from featd.shards.atomic import remove_file

log = logs.get("janitor")

PAGE = 1000
AGAIN_SECONDS = 3600.0
"""After a work that left something, which reads every shard, the next one waits for so long."""
ASKS = "`featd db upgrade` asks about a correction of its vectors: answer, then forget again"


class Forgetting:
    """Forgets what the catalog's note says, and may be stopped at any step."""

    def __init__(self, catalog: sa.Engine, store: StoreConfig, host: str, lease_seconds: float) -> None:
        self._catalog = catalog
        self._store = store
        self._host = host
        self._lease_seconds = lease_seconds
        self._merger = Merger(catalog, store, self._leave_alone)
        self._again_at = 0.0
        self._stuck: dict[int | Path, str] = {}
        """Shards that could not be rewritten, and files that could not be removed."""
        self.images = 0
        """Images whose rows were deleted."""
        self.removed = 0
        """Files that were removed."""
        self.waits_for = ""
        """What has to happen before it can go on."""
        self.left: dict[str, str] = {}
        """File -> why it may still have a vector."""

    @property
    def rewritten(self) -> int:
        """Shards that were rewritten."""
        return self._merger.merged

    def work(self) -> Generator[None]:
        """All that can be done now, in steps of at most about a second; where nothing is left, the note goes. OSError;
        CatalogUnavailableError; StoreUnavailableError; OtherStoreError."""
        self.waits_for = ""
        with connect.reading(self._catalog) as conn:
            note = forget.read(conn)
        if note is None or clock.monotonic() < self._again_at:
            return
        yield from self._erase(note)
        with connect.reading(self._catalog) as conn:
            in_hand = forget.count_left(conn, note)
        if in_hand:
            self.waits_for = f"{in_hand:,} of these images, which workers have in hand"
            return
        hold = Hold(self._catalog, self._store, self._host, self._lease_seconds)
        try:
            with connect.reading(self._catalog) as conn:
                busy = forget.earlier_compaction(conn, hold.lease)
            if busy:
                self.waits_for = "a merge of small shards that began earlier"
                return
            yield from self._take_out(note, hold)
            remove_indexes(self._store.path)  # they are made again without these vectors
            self._finish(note)
        except IndexBusyError as error:
            self.waits_for = str(error)
        except LeaseLostError:
            self.waits_for = "another lease, since that of this process has ended"
        finally:
            hold.end()

    def _erase(self, note: Note) -> Iterator[None]:
        for target in note.targets:
            while erased := connect.transact(self._catalog, forget.erase, target, note.newest, PAGE):
                self.images += erased
                yield
        for at in range(0, len(note.contents), PAGE):
            connect.transact(self._catalog, forget.clear_copies, note.contents[at : at + PAGE])
            yield
        crash_point(CrashPoint.FORGET_ERASED)

    def _take_out(self, note: Note, hold: Hold) -> Iterator[None]:
        """Until a look finds nothing that can be done."""
        traces = Traces(self._catalog, self._store.path, note.targets, note.contents)
        self._stuck.clear()
        done = True
        while done:
            for _ in traces.look():
                hold.renew()
                yield
            found, done = traces.found, False
            for path in found.remove:
                if path not in self._stuck:
                    done = True
                    self._remove(path)
                    hold.renew()
                    yield
            for shard in found.rewrite:
                if shard.id not in self._stuck:
                    done = True
                    yield from self._rewrite(shard, hold)
        self.left = dict(found.unreadable)
        self.left |= {str(path.relative_to(self._store.path)): self._stuck[path] for path in found.remove}
        self.left |= {shard.path: self._stuck[shard.id] for shard in found.rewrite}

    def _rewrite(self, shard: OldShard, hold: Hold) -> Iterator[None]:
        with connect.reading(self._catalog) as conn:
            undecided = max(corrections.undecided(conn).values(), default=0)
        if shard.live_rows and shard.id <= undecided:  # a requeue finds images by their shards
            self._stuck[shard.id] = ASKS
            return
        before = self._merger.merged
        yield from self._merger.merge([shard], hold)
        if self._merger.merged > before:
            crash_point(CrashPoint.FORGET_REWRITTEN)
            self._remove(self._store.path / shard.path)

    def _remove(self, path: Path) -> None:
        try:
            remove_file(path)
        except OSError as error:
            self._stuck[path] = reason(error)
        else:
            self.removed += 1
            crash_point(CrashPoint.FORGET_REMOVED)

    def _finish(self, note: Note) -> None:
        if self.left:
            self._again_at = clock.monotonic() + AGAIN_SECONDS
            log.warning(
                "vectors_not_forgotten",
                "some files may still have vectors of images that are to be forgotten; trying again in an hour",
                files=len(self.left),
                such_as=next(iter(self.left)),
            )
        elif connect.transact(self._catalog, forget.end, note):
            log.info(
                "images_forgotten",
                "no vector is left of the images that were to be forgotten",
                images=self.images,
                rewritten=self.rewritten,
                removed=self.removed,
            )
        else:
            self.waits_for = "what another `featd forget` has added"

    def _leave_alone(self, ids: Sequence[int], why: str) -> None:
        self._stuck |= dict.fromkeys(ids, why)
