"""The feed: every change of a live vector is in it, once its transaction is committed, however commits overtake."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, corrections, enqueue, feed, repair, values
from featd.catalog.enqueue import FoundFile
from featd.catalog.feed import HISTORY, Token
from featd.catalog.repair import Orphan
from featd.catalog.schema import feed as feed_table
from featd.catalog.schema import images
from featd.errors import TokenError
from featd.states import Kind, Unchanged

WRITERS = {"sqlite": 4, "postgresql": 8}
TURNS = 25


def noted(desk: Any) -> list[list[int]]:
    """The images of each change that was noted since the last look."""
    found = [row.image_ids for row in desk.rows(feed_table, feed_table.c.seq.is_(None))]
    desk.number()
    return found


def test_how_far_its_readers_are_behind(desk: Any) -> None:
    assert desk.do(feed.lag_seconds) == 0
    desk.make_done("a.jpg")
    assert 0 <= desk.do(feed.lag_seconds) < 60
    desk.execute(sa.update(feed_table).values(at=clock.utcnow() - timedelta(seconds=100)))
    desk.make_done("b.jpg")
    assert 100 <= desk.do(feed.lag_seconds) < 160, "the oldest counts"
    desk.number()
    assert desk.do(feed.lag_seconds) == 0


def test_what_enters_it(desk: Any) -> None:
    lease = desk.lease()
    desk.find("a.jpg", "b.jpg", "c.jpg")
    claimed = desk.claim(lease)
    assert noted(desk) == []
    desk.settle(lease, made=claimed[:2])
    desk.fail(lease, claimed[2], Kind.DECODE_CORRUPT)
    a, b = desk.id("a.jpg"), desk.id("b.jpg")
    assert noted(desk) == [[a, b]]
    desk.find("a.jpg", mtime_ns=2)
    assert noted(desk) == [[a]], "a new version"
    (again,) = desk.claim(lease)
    desk.settle(lease, unchanged=[Unchanged(again, again.known_content)])
    assert noted(desk) == [[a]], "touched, and done again with its vector"
    desk.vanish("a.jpg")
    assert noted(desk) == [[a]]
    desk.find("a.jpg", mtime_ns=3)
    assert noted(desk) == [], "gone images were not live"
    desk.do(enqueue.compare, desk.root, [(FoundFile("b.jpg", 1, 1, 5), "other content")])
    assert noted(desk) == [[b]]
    desk.settle(lease, made=desk.claim(lease))
    assert noted(desk) == [[a, b]]
    desk.do(repair.forget_vectors, {b: desk.row("b.jpg").shard_id})
    assert noted(desk) == [[b]]
    row = desk.row("b.jpg")
    orphan = Orphan(b, row.size, row.mtime_ns, 0, "content")
    assert desk.do(repair.adopt, desk.shard(1), lease.id, desk.identity.fingerprint, [orphan]) == 1
    assert noted(desk) == [[b]]
    desk.do(corrections._to_pending, [b])  # noqa: SLF001
    assert noted(desk) == [[b]]


def test_a_transaction_that_commits_late_comes_later(desk: Any) -> None:
    if desk.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    with desk.engine.connect().execution_options(write=True) as early:
        transaction = early.begin()
        feed.note(early, [1])
        desk.do(feed.note, [2])
        assert desk.do(feed.number) == 1
        with connect.reading(desk.engine) as conn:
            token = feed.now(conn)
        transaction.commit()
    assert desk.do(feed.number) == 1
    with connect.reading(desk.engine) as conn:
        assert [gone.image_id for gone in feed.changes(conn, token, 10).deleted] == [1]


def test_a_portion_is_of_few_images(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_IMAGES", 4)
    with connect.reading(desk.engine) as conn:
        token = feed.now(conn)
    for n in range(4):
        desk.make_done(*(f"{n}-{at}.jpg" for at in range(3)))
    desk.number()
    sizes, left = [], True
    while left:
        with connect.reading(desk.engine) as conn:
            found = feed.changes(conn, token, 100)
        sizes.append(len(found.upserts))
        token, left = found.token, found.left
    assert sizes == [6, 6]


def test_old_changes_are_forgotten_and_their_tokens_refused(desk: Any) -> None:
    for path in "abcd":
        desk.make_done(f"{path}.jpg")
    desk.number()
    with connect.reading(desk.engine) as conn:
        end = feed.now(conn)
    assert end.number == 4
    old = sa.update(feed_table).where(feed_table.c.seq <= 2)
    desk.execute(old.values(at=desk.now - timedelta(days=31)))
    assert desk.do(feed.forget_old, 30.0) == 2
    assert desk.do(feed.forget_old, 30.0) == 0
    index: dict[int, Any] = {}
    assert desk.follow(index, Token(end.history, 2), 10) == end
    assert len(index) == 2
    with pytest.raises(TokenError, match=r"too old.*Begin anew"):
        desk.follow(index, Token(end.history, 1))
    desk.do(values.set_value, HISTORY, "another")
    with pytest.raises(TokenError, match="another history"):
        desk.follow(index, end)
    desk.execute(sa.delete(feed_table))  # the fixture follows it from its beginning
    desk.execute(sa.delete(images))
    desk.do(values.set_value, feed.FORGOTTEN, 0)
    desk.recount = lambda: None


def test_many_writers_and_one_who_follows(desk: Any) -> None:
    """Each transaction is held open for a while, so that they overtake each other."""
    writers = WRITERS[desk.engine.dialect.name]
    names = [f"{n}.jpg" for n in range(writers * 4)]
    failures: list[BaseException] = []
    index: dict[int, Any] = {}
    with connect.reading(desk.engine) as conn:
        token = feed.now(conn)
    pause = threading.Event()  # is never set: a wait that ends by its time

    def held(work: Any, *arguments: Any, dice: random.Random) -> Any:
        def longer(conn: sa.Connection) -> Any:
            result = work(conn, *arguments)
            pause.wait(dice.uniform(0.0, 0.02))
            return result

        return desk.do(longer)

    def write(seed: int) -> None:
        dice = random.Random(seed)
        try:
            lease = desk.lease(device=f"cpu:{seed}")
            for turn in range(TURNS):
                match dice.randrange(4):
                    case 0:
                        path = dice.choice(names)
                        held(enqueue.enqueue, desk.root, [FoundFile(path, 1, seed + turn * 100)], dice=dice)
                    case 1:
                        known = held(enqueue.known_at, desk.root, [dice.choice(names)], dice=dice)
                        held(enqueue.mark_gone, [one.id for one in known], "vanished", dice=dice)
                    case _:
                        desk.settle(lease, made=desk.claim(lease, 3), shard=f"{seed}-{turn}.h5")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(writers)]
    desk.find(*names)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        desk.do(feed.number)
        token = desk.follow(index, token, 2)
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    desk.number()
    while (later := desk.follow(index, token)) != token:
        token = later
    assert index == desk.live()
    assert index
