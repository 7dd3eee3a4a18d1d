"""A simulated life of one catalog and one store, which its seed decides entirely: no wall clock, no threads.

Real: every catalog function, SQLite, claims, writer, shards, leftovers and rescue. Simulated: time, the files of the
root, the net (a vector says which image and which content it was made from), and what the world does to them: kills at
every crash point, stalls beyond the lease, clock steps, outages of the catalog, lost COMMITs and lost replies. At every
crash point and every wait, the others may act first.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, counters, dialects, enqueue, feed, leases, mend, migrate, pairing, schema
from featd.catalog.connect import CommitUnknownError
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Identity
from featd.config import StoreConfig
from featd.crash_points import CrashPoint
from featd.decoders.wire import Decoded
from featd.errors import CatalogUnavailableError, LeaseLostError
from featd.janitor import choose
from featd.janitor.compaction import Compaction
from featd.janitor.leftovers import Leftovers
from featd.janitor.rescue import Cause, Rescue
from featd.shards.read import ShardReader
from featd.shards.store import StoreKey, create_store, shards_folder
from featd.states import (
    MAX_BACKOFF_SECONDS,
    ClaimedImage,
    Failure,
    Kind,
    Lease,
    RetryPolicy,
    State,
    Unchanged,
)
from featd.worker.claims import Claims, Held
from featd.worker.writer import Flush, ShardKind, Stop, VectorBatch, Writer

LEASE_SECONDS = 60.0
POLICY = RetryPolicy(max_errors=1, max_crashes=1, backoff_seconds=5.0)
IDENTITY = Identity("f" * 64, {"blobs": ["fc"], "dtype": "float32"}, {})
NAMES = [f"{folder}/{n}.jpg" for folder in "ab" for n in range(4)]
IN_TRANSACTION = (CrashPoint.SETTLING, CrashPoint.COMPACTION_SWAPPING)
"""There nobody else may act: SQLite lets no other write."""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class KilledError(BaseException):
    """The process whose turn it is was killed here."""


@dataclass(frozen=True)
class File:
    """A file of the root. `content` stands for its bytes; a picture with odd content is damaged."""

    content: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def hash(self) -> str:
        return f"xxh3_128:{self.content:032x}"

    @property
    def damaged(self) -> bool:
        return self.content % 7 == 3


class World:
    """Time, files and faults. `history` tells what happened, for whoever looks at a seed that failed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.elapsed = 0.0
        self.wall_step = timedelta(0)
        self.files: dict[str, File] = {}
        self.ticks = 0
        self.quiet = True
        self.dying = False
        self.catalog_back_at = 0.0
        self.next_commit: str | None = None
        self.history: list[str] = []
        self.others: Callable[[], None] = lambda: None
        """Lets others act, at a point where whoever has the turn may be interrupted."""

    def tell(self, what: str) -> None:
        self.history.append(f"{self.elapsed:8.1f} {what}")

    def chance(self, probability: float) -> bool:
        return not self.quiet and self.random.random() < probability

    # Files

    def write(self, path: str, *, keeps_times: bool = False) -> None:
        self.ticks += 1
        before = self.files.get(path)
        new = File(self.ticks, 100 + self.ticks, self.ticks, self.ticks)
        if keeps_times and before is not None:
            new = replace(new, size=before.size, mtime_ns=before.mtime_ns)
        self.files[path] = new
        self.tell(f"{path} has content {new.content}{' with the old size and mtime' if keeps_times else ''}")

    def change_a_file(self) -> None:
        path = self.random.choice(NAMES)
        if path not in self.files:
            self.write(path)
            return
        match self.random.randrange(5):
            case 0:
                self.write(path)
            case 1:
                self.write(path, keeps_times=True)
            case 2:
                self.ticks += 1
                self.files[path] = replace(self.files[path], mtime_ns=self.ticks, ctime_ns=self.ticks)
                self.tell(f"{path} is touched")
            case 3:
                del self.files[path]
                self.tell(f"{path} is deleted")
            case 4:
                to = self.random.choice(NAMES)
                self.ticks += 1
                self.files[to] = replace(self.files.pop(path), ctime_ns=self.ticks)
                self.tell(f"{path} is renamed to {to}")

    # Clocks

    def utcnow(self) -> datetime:
        return BEGIN + timedelta(seconds=self.elapsed) + self.wall_step

    def sleep(self, seconds: float) -> None:
        self.elapsed += seconds
        self.others()

    # Faults

    def crash_point(self, point: CrashPoint) -> None:
        if self.chance(0.02):
            self.tell(f"killed at {point}")
            self.dying = True
            raise KilledError
        if point not in IN_TRANSACTION:
            self.others()

    def check_catalog(self) -> None:
        if self.dying or (self.elapsed < self.catalog_back_at and not self.quiet):
            raise sqlite3.OperationalError("unable to open database file")


class Stage:
    """The world's clocks, crash points and database in place of the real ones, for one life after the other: an engine
    keeps the statements that it has compiled."""

    def __init__(self, folder: Path) -> None:
        self.world = World(0)
        self.folder = folder / "life"
        self._template = folder / "template.db"
        make_template(self._template)

    def __enter__(self) -> Stage:
        self._patch = patch = pytest.MonkeyPatch()
        patch.setattr(clock, "utcnow", lambda: self.world.utcnow())
        patch.setattr(clock, "monotonic", lambda: self.world.elapsed)
        patch.setattr(clock, "boottime", lambda: self.world.elapsed)
        patch.setattr(clock, "sleep", lambda seconds: self.world.sleep(seconds))
        patch.setattr(choose, "FAN_IN", 2)
        patch.setattr(dialects, "connect_args", lambda *_: {"factory": self._connection()})
        importlib.import_module("featd.janitor.merge")  # it is imported late
        for name, module in list(sys.modules.items()):
            if name.startswith("featd.") and name != "featd.crash_points" and hasattr(module, "crash_point"):
                patch.setattr(module, "crash_point", lambda point: self.world.crash_point(point))
        self.catalog = connect.open_catalog(f"sqlite:///{self.folder}/featd.db", LEASE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.catalog.dispose()
        self._patch.undo()

    def begin(self, seed: int) -> World:
        """A new world, with an empty catalog and no store."""
        self.catalog.dispose()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        shutil.copy(self._template, self.folder / "featd.db")
        self.world = World(seed)
        return self.world

    def _connection(self) -> type[sqlite3.Connection]:
        """A connection of Python's sqlite3 to which the world's outages happen."""
        stage = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                stage.world.check_catalog()
                return super().execute(*arguments)

        class Connection(sqlite3.Connection):
            def cursor(self, *_: Any) -> Any:
                return super().cursor(Cursor)

            def commit(self) -> None:
                world = stage.world
                fault, world.next_commit = world.next_commit, None
                if not self.in_transaction or fault is None:
                    super().commit()
                    return
                world.tell(f"a COMMIT is lost ({fault})")
                if fault == "reply":
                    super().commit()
                raise sqlite3.OperationalError("disk I/O error")

        return Connection


class SteppedWriter(Writer):
    """A writer that has no thread: each item is worked on when it is handed over."""

    def is_alive(self) -> bool:
        return True

    def hand(self, item: Any) -> None:
        self.put(item)
        self.step()


class _Link:
    """The link of a worker that needs no waking."""

    def wake_self(self) -> None:
        pass


class Worker:
    """A worker's parts, which act when they are told to."""

    def __init__(
        self, world: World, catalog: sa.Engine, store: Path, root: str, key: StoreKey, name: str
    ) -> None:
        self.world, self.root, self.name = world, root, name
        self.catalog = catalog
        self.stalled_until = 0.0
        self.lease: Lease = connect.transact(
            catalog,
            leases.open_lease,
            host="here",
            pid=1,
            device=name,
            engine="gist",
            lease_seconds=LEASE_SECONDS,
        )
        world.crash_point(CrashPoint.LEASE_OPENED)
        link: Any = _Link()
        self.held = Held()
        self.claims = Claims(
            catalog, self.lease, link, {root: root}, self.held, ahead=4, lease_seconds=LEASE_SECONDS
        )
        kind = ShardKind({"fc": 2}, "gist", "here", key)
        self.writer = SteppedWriter(catalog, self.lease, store, kind, IDENTITY, POLICY, self.held)
        self.decoded: list[Decoded] = []

    def act(self) -> None:
        world = self.world
        match world.random.randrange(6):
            case 0:
                self.claims.step(world.elapsed)
            case 1 | 2:
                self.decode()
            case 3:
                self.forward()
            case 4:
                self.writer.hand(Flush())
            case 5:
                connect.transact(self.catalog, leases.renew, self.lease, LEASE_SECONDS, {})

    def decode(self) -> None:
        image = self.claims.take()
        if image is None:
            return
        result = self._result(image)
        if isinstance(result, Decoded):
            self.decoded.append(result)
        else:
            self.writer.hand(result)

    def _result(self, image: ClaimedImage) -> Decoded | Unchanged | Failure:
        file = self.world.files.get(image.path)
        if file is None:
            return Failure(image, Kind.READ_MISSING, "no such file")
        if (file.size, file.mtime_ns) != (image.size, image.mtime_ns):
            return Failure(image, Kind.READ_CHANGED, "changed", file.size, file.mtime_ns, 1.0)
        if file.hash == image.known_content:
            return Unchanged(image, file.hash)
        if file.damaged:
            return Failure(image, Kind.DECODE_CORRUPT, "damaged")
        return Decoded(image, file.hash)

    def forward(self) -> None:
        if self.decoded:
            batch, self.decoded = self.decoded, []
            vectors = [(one.image.id, int(one.content.partition(":")[2], 16)) for one in batch]
            self.writer.hand(VectorBatch(batch, {"fc": np.array(vectors, np.float32)}))

    def stop(self) -> None:
        """As on SIGTERM."""
        self.decoded.clear()
        self.writer.hand(Stop())
        connect.transact(self.catalog, leases.end_lease, self.lease, "stopped", POLICY)
        self.world.crash_point(CrashPoint.LEASE_ENDED)


class Life:
    """One history of one instance."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.world = world = stage.begin(seed)
        self.catalog = stage.catalog
        self.store = stage.folder / "features"
        self.root = stage.folder / "images"
        self.root.mkdir()
        (self.root / "notes.txt").touch()  # an empty root counts as offline
        with connect.reading(self.catalog) as conn:
            self.key = pairing.store_key(conn)
        create_store(self.store, self.key)
        self.workers: dict[str, Worker | None] = {"w0": None, "w1": None}
        self.rescue = Rescue(self.catalog, stage.folder, "here", POLICY)
        self.leftovers = Leftovers(self.catalog, self.store, 7.0, 0)
        self.looking: Iterator[object] | None = None
        self.config = StoreConfig(path=self.store, shard_rows=1, shard_seconds=20.0, idle_seconds=0.0)
        self.doubted: dict[str, FoundFile] = {}
        self.index: dict[int, tuple[str, int]] = {}
        """Of one who follows the feed: image -> path and version."""
        with connect.reading(self.catalog) as conn:
            self.token = feed.now(conn)
        self.acting: set[str] = set()
        world.others = self.interrupt

    def run(self) -> None:
        """Some turns, then what a healthy featd does; then the promise must hold. AssertionError with the history."""
        world = self.world
        world.quiet = False
        try:
            for name in NAMES[: world.random.randrange(len(NAMES))]:
                world.write(name)
            self.as_("ingest", self.scan)
            for _ in range(world.random.randrange(10, 70)):
                self.turn()
            self.settle_down()
            self.check()
        except Exception as error:
            tale = "\n".join(world.history)
            raise AssertionError(
                f"seed {world.seed}: {type(error).__name__}: {error}; the history:\n{tale}"
            ) from error

    # Turns

    def turn(self) -> None:
        world = self.world
        world.elapsed += world.random.choice((0.01, 0.1, 1.0, 5.0))
        match world.random.randrange(13):
            case 0 | 1:
                world.change_a_file()
            case 2:
                self.fault()
            case 3 | 4:
                self.as_("ingest", self.ingest)
            case 5:
                self.as_("janitor", self.tidy)
            case 6:
                self.as_("reader", self.follow)
            case _:
                name = world.random.choice(list(self.workers))
                self.as_(name, lambda: self.work(name))

    def interrupt(self) -> None:
        """Some turns of others."""
        if len(self.acting) < 3:
            while self.world.chance(0.3):
                self.turn()

    def as_(self, name: str, act: Callable[[], None]) -> None:
        """Give `name` a turn, unless it waits in one already."""
        if name in self.acting:
            return
        self.acting.add(name)
        try:
            act()
        except CatalogUnavailableError as error:
            self.world.tell(f"{name}: {error}")
        except LeaseLostError:
            self.world.tell(f"{name} has lost its lease")
            self.workers[name] = None
        except KilledError:
            self.world.tell(f"{name} is dead")
            self.world.dying = False
            if name in self.workers:
                worker, self.workers[name] = self.workers[name], None
                if worker is not None and self.world.chance(0.7):  # else the supervisor died too
                    self.bury(worker.lease)
            elif name == "janitor":
                self.looking = None
        finally:
            self.acting.discard(name)

    def bury(self, lease: Lease) -> None:
        with contextlib.suppress(CatalogUnavailableError):  # then the lease expires
            self.rescue.end(lease, Cause(None, "killed"))

    def fault(self) -> None:
        world = self.world
        match world.random.randrange(5):
            case 0:
                world.next_commit = world.random.choice(("request", "reply"))
            case 1:
                world.catalog_back_at = world.elapsed + world.random.choice((0.5, 3.0, 70.0))
                world.tell(f"the catalog is away until {world.catalog_back_at:.1f}")
            case 2:
                world.wall_step = timedelta(hours=world.random.randrange(-48, 48))
                world.tell(f"the wall clock is wrong by {world.wall_step}")
            case 3:
                world.elapsed += world.random.choice((20.0, 61.0))
            case 4:
                worker = self.workers[world.random.choice(list(self.workers))]
                if worker is not None:
                    worker.stalled_until = world.elapsed + world.random.choice((10.0, 70.0))
                    world.tell(f"{worker.name} stalls")

    # Who acts

    def work(self, name: str) -> None:
        worker = self.workers[name]
        if worker is None:
            self.world.tell(f"{name} starts")
            self.workers[name] = Worker(self.world, self.catalog, self.config, str(self.root), self.key, name)
        elif self.world.elapsed >= worker.stalled_until:
            if self.world.chance(0.03):
                self.world.tell(f"{name} stops")
                worker.stop()
                self.workers[name] = None
            else:
                for _ in range(self.world.random.randrange(1, 8)):
                    worker.act()

    def ingest(self) -> None:
        """A scan, an event, or a look at files in doubt."""
        kind = self.world.random.randrange(3)
        if kind == 0:
            self.scan()
        elif kind == 1:
            self.found([path for path in NAMES if self.world.random.random() < 0.3], heard=True)
        else:
            self.compare()

    def scan(self) -> None:
        known = [row for page in enqueue.walk_known(self.catalog, str(self.root), 3) for row in page]
        self.found(NAMES)
        vanished = [row.id for row in known if row.path not in self.world.files]
        connect.transact(self.catalog, enqueue.mark_gone, vanished, "the file is gone")

    def found(self, paths: list[str], *, heard: bool = False) -> None:
        files = self.world.files
        here = [
            FoundFile(path, files[path].size, files[path].mtime_ns, files[path].ctime_ns)
            for path in paths
            if path in files
        ]
        result = connect.transact(self.catalog, enqueue.enqueue, str(self.root), here, heard=heard)
        self.doubted |= {file.path: file for file in result.doubted}

    def compare(self) -> None:
        read = []
        for path in list(self.doubted):
            file = self.world.files.get(path)
            stat = self.doubted.pop(path)
            if file is not None and (file.size, file.mtime_ns) == (stat.size, stat.mtime_ns):
                read.append((stat._replace(ctime_ns=file.ctime_ns), file.hash))
        try:
            _, claimed = connect.transact(self.catalog, enqueue.compare, str(self.root), read)
        except CommitUnknownError:
            claimed = [stat for stat, _ in read]
        self.doubted |= {file.path: file for file in claimed}

    def tidy(self) -> None:
        """A step of the janitor."""
        match self.world.random.randrange(6):
            case 5:
                connect.transact(self.catalog, feed.number)
            case 0:
                self.rescue.end_expired()
            case 1:
                self.mend()
            case 2:
                self.looking = self.looking or self.leftovers.look()
                if next(self.looking, None) is None:
                    self.looking = None
            case _:
                for _ in self.compaction():
                    for _ in range(self.world.random.randrange(12)):  # it takes its time
                        self.turn()

    def mend(self) -> None:
        connect.transact(self.catalog, mend.mend_retired)
        connect.transact(self.catalog, mend.mend_far_future)

    def compaction(self) -> Generator[object]:
        """Of shards of up to 64 rows, removed after 30 s."""
        store = self.config.model_copy(update={"shard_rows": 64, "grace_seconds": 30.0})
        return Compaction(self.catalog, store, "here", LEASE_SECONDS).work()

    def follow(self) -> bool:
        """Bring the index up to date by a few changes; whether there were any."""
        with connect.reading(self.catalog) as conn:
            found = feed.changes(conn, self.token, 2)
        self.index.update({one.image_id: (one.path, one.version) for one in found.upserts})
        for gone in found.deleted:
            self.index.pop(gone.image_id, None)
        moved, self.token = found.token != self.token, found.token
        return moved

    # The end

    def settle_down(self) -> None:
        """The faults end, and a healthy featd goes on until nothing is left to do."""
        world = self.world
        world.tell("the faults end")
        world.quiet, world.next_commit, world.wall_step = True, None, timedelta(0)
        self.acting.clear()
        before = None
        # What a wrong clock put off for less than the longest back-off waits for so long.
        for _ in range(int(1.2 * MAX_BACKOFF_SECONDS / LEASE_SECONDS)):
            self.scan()
            self.compare()
            self.rescue.end_expired()
            self.mend()
            self.work_off()
            world.elapsed += LEASE_SECONDS + 1
            with connect.reading(self.catalog) as conn:
                counted = counters.counts(conn)
            if counted == before and not counted[State.PENDING] + counted[State.CLAIMED]:
                break
            before = counted
        else:
            raise AssertionError(f"never drained: {counted}")
        self.rescue.end_expired()
        for _ in range(2):
            list(self.compaction())
            world.elapsed += LEASE_SECONDS
            list(self.leftovers.look())

    def work_off(self) -> None:
        """The workers that are left end what they hold, and stop; one is started where none is."""
        for name, worker in self.workers.items():
            if worker is None and any(self.workers.values()):
                continue
            try:
                if worker is None:
                    worker = Worker(self.world, self.catalog, self.config, str(self.root), self.key, name)
                while worker.claims.step(self.world.elapsed) or worker.decoded:
                    for _ in range(8):
                        worker.decode()
                    worker.forward()
                for _ in range(8):
                    worker.decode()
                worker.forward()
                worker.stop()
            except LeaseLostError:
                pass
            self.workers[name] = None

    # The promise

    def check(self) -> None:
        with connect.reading(self.catalog) as conn:
            images = {row.path: row for row in conn.execute(sa.select(schema.images))}
            shards = {row.id: row for row in conn.execute(sa.select(schema.shards))}
            counted = {state: count for state, count in counters.counts(conn).items() if count}
            # Those of compaction leave no row, unless it was killed.
            of_workers = schema.leases.c.device != leases.COMPACTION
            workers = set(conn.scalars(sa.select(schema.leases.c.id).where(of_workers)))
        for path, file in self.world.files.items():
            image = images.get(path)
            assert image is not None, f"{path} has no row"
            expected = State.FAILED if file.damaged else State.DONE
            assert image.state == expected, f"{path} is {image.state} ({image.error}), not {expected}"
            if not file.damaged:
                assert image.content == file.hash, f"{path} has the content {image.content}, not {file.hash}"
        gone = {path for path, image in images.items() if image.state == State.GONE}
        assert gone == set(images) - set(self.world.files), "other rows are gone than files"
        assert counted == Counter(State(image.state) for image in images.values()), "counters are wrong"
        self._check_shards(images, shards, workers)
        connect.transact(self.catalog, feed.number)
        while self.follow():
            pass
        live = {
            image.id: (image.path, image.shard_version)
            for image in images.values()
            if image.state == State.DONE
        }
        assert self.index == live, "who follows the feed has other vectors than are live"

    def _check_shards(self, images: dict[str, Any], shards: dict[int, Any], workers: set[int]) -> None:
        naming = Counter(image.shard_id for image in images.values() if image.shard_id is not None)
        assert {key: shard.live_rows for key, shard in shards.items() if shard.live_rows} == naming
        files = {path.name for path in shards_folder(self.store).rglob("*") if path.is_file()}
        assert files == {shard.name for shard in shards.values()}, "other shards on disk than in the catalog"
        made: Counter[tuple[int, int]] = Counter()
        for shard_id, shard in shards.items():
            with ShardReader(self.store / shard.path) as reader:
                ids, versions = reader.keys()
                if shard.lease_id in workers:
                    made.update(zip(ids.tolist(), versions.tolist(), strict=True))
                vectors, contents = reader.read("fc", np.arange(len(ids))), reader.contents()
            for image in images.values():
                if image.shard_id == shard_id:
                    at = image.shard_row
                    assert contents[at] == image.content, f"{image.path} names another content's row"
                    expected = [image.id, int(image.content.partition(":")[2], 16)]
                    assert vectors[at].tolist() == expected, f"{image.path} names the vector {vectors[at]}"
        twice = [key for key, count in made.items() if count > 1]
        assert not twice, f"recorded twice: (image, version) {twice}"


def make_template(path: Path) -> None:
    """An empty catalog, which each life begins with."""
    engine = connect.open_catalog(f"sqlite:///{path}")
    migrate.upgrade(engine)
    engine.dispose()
