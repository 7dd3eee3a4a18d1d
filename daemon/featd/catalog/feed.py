"""The feed: the order of changes to live vectors, which a reader can follow from a token.

A transaction that moves images into or out of `done` notes their ids in one row, without a number, since transactions
may commit in another order than they began. The janitor that tidies numbers the rows that are committed, under one
lock: so the numbers have one order. A reader looks up what these images are now, which may be newer than the change;
what is newer comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from featd.catalog import dialects, instance, live, values
from featd.catalog.live import LiveVector
from featd.catalog.schema import feed, images
from featd.errors import TokenError

HISTORY = "history"
"""The setting that a restored catalog gets anew: the tokens of an earlier history are void."""
LAST = "feed.last"
"""The setting: the number of the newest change."""
FORGOTTEN = "feed.forgotten"
"""The setting: the newest number of those that are not kept any more."""
NUMBERED = 1000
"""Changes that are numbered, or forgotten, in one transaction."""
MOST_IMAGES = 1000
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Token:
    """A place in the feed of one history of a catalog."""

    history: str
    number: int

    def __str__(self) -> str:
        return f"{self.number}.{self.history}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """TokenError."""
        number, _, history = text.partition(".")
        if not (number.isascii() and number.isdecimal() and history) or len(number) > 18:
            raise TokenError(f"{text!r} is no token: `featd changes` and `featd export` print one")
        return cls(history, int(number))


@dataclass(frozen=True, slots=True)
class NotLive:
    """An image without a live vector. The name is None where the image was forgotten or purged."""

    image_id: int
    root: str | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Portion:
    """The ids of images that have changed up to `token`. `left`: whether there is more."""

    image_ids: Set[int]
    token: Token
    left: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of some images, up to `token`. `left`: whether there is more."""

    upserts: Sequence[LiveVector]
    deleted: Sequence[NotLive]
    token: Token
    left: bool


def note(conn: sa.Connection, image_ids: Collection[int]) -> None:
    """The vectors of these images become live or other ones, or are live no more. In the transaction that does it."""
    if image_ids:
        conn.execute(_note(conn), {"image_ids": sorted(image_ids)})


@dialects.once
def _note(conn: sa.Connection) -> sa.Insert:
    return sa.insert(feed).values(at=dialects.now(conn))


def is_numbered(conn: sa.Connection) -> bool:
    """Whether every change that is committed has its number."""
    return conn.scalar(sa.select(feed.c.id).where(feed.c.seq.is_(None)).limit(1)) is None


def lag_seconds(conn: sa.Connection) -> float:
    """The age of the oldest change that has no number yet, so that readers do not see it; 0 where each has one."""
    first = sa.select(feed.c.at).where(feed.c.seq.is_(None)).order_by(feed.c.id).limit(1)
    at: datetime | None = conn.scalar(first)
    if at is None:
        return 0.0
    moment: datetime = conn.execute(sa.select(dialects.now(conn))).scalar_one()
    return max(0.0, (moment - at).total_seconds())


def number(conn: sa.Connection) -> int:
    """Give numbers to changes that are committed; returns to how many. Called by the janitor; needs no lease."""
    values.add_values(conn, {LAST: 0})
    values.lock(conn, LAST)
    last = _value(conn, LAST)
    ids = conn.scalars(
        sa.select(feed.c.id).where(feed.c.seq.is_(None)).order_by(feed.c.id).limit(NUMBERED)
    ).all()
    if ids:
        numbers = [{"of": one, "next": last + at} for at, one in enumerate(ids, start=1)]
        conn.execute(
            sa.update(feed).where(feed.c.id == sa.bindparam("of")).values(seq=sa.bindparam("next")), numbers
        )
        values.set_value(conn, LAST, last + len(ids))
    return len(ids)


def forget_old(conn: sa.Connection, days: float) -> int:
    """Delete the oldest changes, those of more than `days` ago; returns how many. Called by the janitor."""
    statement = sa.select(
        feed.c.seq, (feed.c.at < dialects.later_once(conn, -days * DAY_SECONDS)).label("old")
    )
    oldest = conn.execute(statement.where(feed.c.seq.is_not(None)).order_by(feed.c.seq).limit(NUMBERED)).all()
    old = []
    for seq, is_old in oldest:
        if not is_old:
            break
        old.append(seq)
    if old:
        conn.execute(sa.delete(feed).where(feed.c.seq <= old[-1]))
        values.set_value(conn, FORGOTTEN, old[-1])
    return len(old)


def now(conn: sa.Connection) -> Token:
    """Where the feed stands."""
    return Token(_history(conn), _value(conn, LAST))


def portion(conn: sa.Connection, since: Token, limit: int) -> Portion:
    """The images of the next changes: at most `limit` of them, and no more once they are of MOST_IMAGES images, so that
    whoever reads their vectors needs little memory. TokenError."""
    check(conn, since)
    statement = sa.select(feed.c.seq, feed.c.image_ids).where(feed.c.seq > since.number)
    rows = conn.execute(statement.order_by(feed.c.seq).limit(limit)).all()
    taken: set[int] = set()
    last = since.number
    for row in rows:
        taken.update(row.image_ids)
        last = row.seq
        if len(taken) >= MOST_IMAGES:
            break
    left = len(rows) == limit or (bool(rows) and rows[-1].seq > last)
    return Portion(taken, Token(since.history, last), left)


def changes(conn: sa.Connection, since: Token, limit: int) -> Changes:
    """What became of the images of a portion. TokenError."""
    found = portion(conn, since, limit)
    upserts = live.live_of(conn, sorted(found.image_ids))
    others = sorted(found.image_ids - {one.image_id for one in upserts})
    named = sa.select(*images.c["id", "root", "path"]).where(dialects.has_id(conn, others))
    names = {row.id: (row.root, row.path) for row in conn.execute(named)}
    deleted = [NotLive(one, *names.get(one, (None, None))) for one in others]
    return Changes(upserts, deleted, found.token, found.left)


def check(conn: sa.Connection, token: Token) -> None:
    """TokenError where one cannot go on from `token`."""
    if token.history != _history(conn) or token.number > _value(conn, LAST):
        raise TokenError(
            "this token is of another history: the catalog was restored, or is another one. Begin anew: without a token"
        )
    if token.number < _value(conn, FORGOTTEN):
        raise TokenError(
            "this token is too old: changes are kept for catalog.feed_days. Begin anew: without a token"
        )


def _history(conn: sa.Connection) -> str:
    return str(values.get_value(conn, HISTORY) or instance.instance_id(conn))


def _value(conn: sa.Connection, name: str) -> int:
    return int(values.get_value(conn, name) or 0)
