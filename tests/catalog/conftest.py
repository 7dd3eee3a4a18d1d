"""A desk to work at the catalog from: short words for what workers, ingest and the janitor do.

Whatever a test does, the counters must be exact when it ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from itertools import count
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import claim, connect, counters, enqueue, feed, leases, live, settle
from featd.catalog.enqueue import Enqueued, FoundFile
from featd.catalog.feed import Token
from featd.catalog.leases import InHand
from featd.catalog.live import LiveVector
from featd.catalog.schema import attempts, images, shards
from featd.catalog.schema import leases as lease_table
from featd.catalog.settle import Identity, Made, Settlement
from featd.states import ClaimedImage, Failure, Kind, Lease, RetryPolicy, SealedShard, State, Unchanged

T = TypeVar("T")
Index = dict[int, LiveVector]
"""What who follows the feed has: image -> its live vector."""

ROOT = "/data/a"
OTHER = "/data/b"
IDENTITY = Identity("f" * 64, {"net": "gist"}, {"fc7": [1.0]})
POLICY = RetryPolicy(max_errors=3, max_crashes=2, backoff_seconds=30.0)


class Desk:
    """Every method is one transaction."""

    root, other, identity, policy = ROOT, OTHER, IDENTITY, POLICY

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._serial = count(1)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def do(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        return connect.transact(self.engine, work, *args, **named)

    def execute(self, statement: sa.Executable) -> None:
        self.do(lambda conn: conn.execute(statement))

    # Ingest

    def find(self, *paths: str, size: int = 1, mtime_ns: int = 1, root: str = ROOT, **named: Any) -> Enqueued:
        files = [FoundFile(path, size, mtime_ns) for path in paths]
        return self.do(enqueue.enqueue, root, files, **named)

    def vanish(self, *paths: str, reason: str = "vanished") -> int:
        return self.do(enqueue.mark_gone, [self.id(path) for path in paths], reason)

    # Workers

    def lease(
        self, host: str = "h", device: str = "cpu:0", seconds: float = 60.0, seat: str | None = None
    ) -> Lease:
        given = {"host": host, "pid": 1, "device": device, "lease_seconds": seconds, "seat": seat}
        return self.do(leases.open_lease, engine="caffe", **given)

    def claim(
        self, lease: Lease, limit: int = 100, roots: Sequence[str] = (ROOT, OTHER)
    ) -> list[ClaimedImage]:
        return self.do(claim.claim, lease, limit, roots)

    def settle(
        self,
        lease: Lease,
        made: Sequence[ClaimedImage] = (),
        unchanged: Sequence[Unchanged] = (),
        failures: Sequence[Failure] = (),
        *,
        content: str | None = None,
        shard: str | None = None,
        identity: Identity = IDENTITY,
    ) -> Counter[State]:
        """Settle; the vectors `made` stand in one new shard, in their order."""
        sealed = self.shard(len(made), shard) if made else None
        rows = [
            Made(image, at, content or f"hash of {image.path} {image.version}")
            for at, image in enumerate(made)
        ]
        return self.do(settle.settle, lease, Settlement(sealed, rows, unchanged, failures), identity, POLICY)

    def shard(self, rows: int, name: str | None = None) -> SealedShard:
        name = name or f"shard-{next(self._serial)}.h5"
        return SealedShard(name, f"shards/2026-11-24/{name}", rows, 4096, "xxh3_128:00", "caffe")

    def make_done(self, *paths: str, lease: Lease | None = None) -> Lease:
        """Enqueue, claim and settle."""
        lease = lease or self.lease()
        self.find(*paths)
        self.settle(lease, self.claim(lease))
        return lease

    def fail(
        self, lease: Lease, image: ClaimedImage, kind: Kind, message: str = "why", **named: Any
    ) -> Counter[State]:
        return self.settle(lease, failures=[Failure(image, kind, message, **named)])

    def end(self, lease: Lease, in_hand: InHand | None = None, reason: str = "died") -> bool:
        return self.do(leases.end_lease, lease, reason, POLICY, in_hand) is not None

    def expire(self, lease: Lease) -> None:
        """Let a lease's time be over, by whichever clock the catalog goes."""
        self.execute(sa.update(lease_table).where(lease_table.c.id == lease.id).values(expires_at=0.0))

    # Looking

    @property
    def now(self) -> datetime:
        return clock.utcnow()

    def rows(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        with connect.reading(self.engine) as conn:
            return list(conn.execute(sa.select(table).where(*where).order_by(table.c.id)).all())

    def row(self, path: str, root: str = ROOT) -> sa.Row[Any]:
        (row,) = self.rows(images, images.c.path == path, images.c.root == root)
        return row

    def id(self, path: str) -> int:
        return int(self.row(path).id)

    def state(self, path: str) -> State:
        return State(self.row(path).state)

    def attempts(self, path: str) -> list[tuple[str, int]]:
        return [(row.kind, row.version) for row in self.rows(attempts, attempts.c.image_id == self.id(path))]

    def make_due(self, *paths: str) -> None:
        """Let a back-off be over."""
        ids = [self.id(path) for path in paths]
        past = self.row(paths[0]).updated_at.replace(year=2000)
        self.execute(sa.update(images).where(images.c.id.in_(ids)).values(not_before=past))

    def recount(self) -> None:
        """The counters against the rows."""
        with connect.reading(self.engine) as conn:
            found = dict(
                conn.execute(sa.select(images.c.state, sa.func.count()).group_by(images.c.state)).all()
            )
            counted = counters.counts(conn)
            named = dict(
                conn.execute(
                    sa.select(images.c.shard_id, sa.func.count())
                    .where(images.c.shard_id.is_not(None))
                    .group_by(images.c.shard_id)
                ).all()
            )
            live = dict(conn.execute(sa.select(shards.c.id, shards.c.live_rows)).all())
            lost = conn.scalar(
                sa.select(sa.func.count()).where(
                    (images.c.state == "claimed") != images.c.lease_id.is_not(None)
                )
            )
        assert {state: n for state, n in counted.items() if n} == found
        assert {shard: n for shard, n in live.items() if n} == named, "live_rows"
        assert lost == 0, "rows are claimed exactly while they have a lease"

    # The feed

    def number(self) -> None:
        """As the janitor does."""
        while self.do(feed.number):
            pass

    def live(self) -> Index:
        """What is live."""
        with connect.reading(self.engine) as conn:
            return {one.image_id: one for one in live.live_vectors(conn, 0, 10_000)}

    def follow(self, index: Index, token: Token, limit: int = 3) -> Token:
        """Bring `index` up to date by one portion of changes; the token behind it."""
        with connect.reading(self.engine) as conn:
            found = feed.changes(conn, token, limit)
        index.update({one.image_id: one for one in found.upserts})
        for gone in found.deleted:
            index.pop(gone.image_id, None)
        return found.token

    def check_feed(self) -> None:
        """Who follows the feed from its beginning has exactly what is live."""
        self.number()
        with connect.reading(self.engine) as conn:
            token = Token(feed.now(conn).history, 0)
        index: Index = {}
        while (later := self.follow(index, token)) != token:
            token = later
        assert index == self.live()


@pytest.fixture
def desk(catalog: sa.Engine) -> Iterator[Desk]:
    desk = Desk(catalog)
    yield desk
    desk.recount()
    desk.check_feed()


@pytest.fixture
def unknown_commit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[None]]:
    """The answer to the next COMMIT is lost, after it was done (`stands`) or before."""
    dialect = type(desk.engine.dialect)
    real = dialect.do_commit

    @contextmanager
    def lose(*, stands: bool) -> Iterator[None]:
        def do_commit(self: Any, connection: Any) -> None:
            if stands:
                real(self, connection)
            else:
                connection.rollback()
            raise self.dbapi.OperationalError("connection lost")

        with monkeypatch.context() as patch:
            patch.setattr(dialect, "do_commit", do_commit)
            yield

    return lose


class FakeClock:
    """Stands in for featd.clock in this process; PostgreSQL has its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot_seconds = clock.boottime()
        self.moment = clock.utcnow()
        self.boot = clock.boot_id()
        monkeypatch.setattr(clock, "boottime", lambda: self.boot_seconds)
        monkeypatch.setattr(clock, "utcnow", lambda: self.moment)
        monkeypatch.setattr(clock, "boot_id", lambda: self.boot)


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)
