"""How much was done until each minute: what the page draws. Whoever tidies writes a row a minute."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import sqlalchemy as sa

from featd import clock
from featd.catalog import counters, dialects
from featd.catalog.schema import leases, samples
from featd.states import State

KEPT_MINUTES = 7 * 24 * 60


@dataclass(frozen=True, slots=True)
class Sample:
    """At the end of `minute`, counted since 1970: images that workers had done and failed since the catalog was made,
    each version of each image and each attempt; and how many were pending or claimed."""

    minute: int
    done: int
    failed: int
    open: int


def now(conn: sa.Connection) -> Sample:
    """What a sample of this moment has."""
    done, failed = (sa.func.coalesce(sa.func.sum(column), 0) for column in leases.c["done", "failed"])
    totals = conn.execute(sa.select(done, failed)).one()
    counts = counters.counts(conn)
    left = counts[State.PENDING] + counts[State.CLAIMED]
    return Sample(int(clock.utcnow().timestamp()) // 60, int(totals[0]), int(totals[1]), left)


def take(conn: sa.Connection) -> None:
    """Write this minute's sample, and forget old ones. Needs no lease: hosts that do it in the same minute write the
    same row."""
    sample = now(conn)
    conn.execute(dialects.upsert(conn, samples, ["minute"], asdict(sample)))
    # A clock that was wrong may have left rows of the future.
    outdated = ~samples.c.minute.between(sample.minute - KEPT_MINUTES, sample.minute)
    conn.execute(sa.delete(samples).where(outdated))


def since(conn: sa.Connection, minute: int) -> list[Sample]:
    """The samples from that minute on, in order."""
    statement = sa.select(samples).where(samples.c.minute >= minute).order_by(samples.c.minute)
    return [Sample(*row) for row in conn.execute(statement)]
