"""One catalog, one store: that both belong together, and are both as new as featd left them.

Marker and catalog share a nonce. A start that finds no live lease changes it in three writes: the next nonce into the
catalog, the same into the marker, and a confirmation into the catalog. Until then both nonces pass, so that a start
that dies between two writes locks nobody out. A copy of the store that stays behind has the old nonce, and so has a
catalog that is restored. A catalog that is restored within one start is behind the mark, which the janitor keeps
beside the marker. A host that joins others asks them to write the mark anew, and does not see it in a copy. A store
that came back from a backup to its place, with all shards, is taken as it is.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, hosts, instance, leases, stats, values
from featd.catalog.feed import HISTORY
from featd.catalog.schema import shards
from featd.errors import FeatdError, SeatTakenError, StoreUnavailableError, reason
from featd.shards.store import (
    RESTORED,
    Mark,
    OtherStoreError,
    StoreKey,
    check_instance,
    check_readable,
    check_store,
    read_mark,
    shard_is_missing,
    turn_of,
    write_mark,
    write_marker,
)
from featd.states import RetryPolicy

NONCES = "store.nonces"
"""The setting: the nonce that marker and catalog share, and behind it the next one until it is confirmed."""
PLACE = "store.place"
"""The setting: the path of the store that was given the present nonce."""
LOOKED_THROUGH = 1000
"""The newest shards, which are looked through."""
ANSWER_SECONDS = 15.0
"""Time for the host that tidies to write the mark, and for a network file system to show it."""


def store_key(conn: sa.Connection) -> StoreKey:
    """What the store's marker must say."""
    return StoreKey(instance.instance_id(conn), _nonces(conn))


def check(catalog: sa.Engine, store: Path, *, writable: bool = True) -> StoreKey:
    """The key of the store, which is that of the catalog. OtherStoreError; StoreUnavailableError."""
    look = check_store if writable else check_readable
    try:
        return _looked(catalog, store, look)
    except OtherStoreError:
        if _is_complete_backup(catalog, store):
            with connect.reading(catalog) as conn:
                return store_key(conn)
    return _looked(catalog, store, look)  # a start may have changed the nonce between the two looks


def _looked(catalog: sa.Engine, store: Path, look: Callable[[Path, StoreKey], None]) -> StoreKey:
    with connect.reading(catalog) as conn:
        key = store_key(conn)
    look(store, key)
    return key


def _is_complete_backup(catalog: sa.Engine, store: Path) -> bool:
    """Whether a store with an older nonce came back to its place from a backup that has all shards."""
    with connect.reading(catalog) as conn:
        key, place, live = store_key(conn), values.get_value(conn, PLACE), leases.any_live(conn)
    older = turn_of(check_instance(store, key)) < min(map(turn_of, key.nonces))
    back = older and not live and place == str(store.resolve())
    return back and not _lacking(catalog, store)


def _lacking(catalog: sa.Engine, store: Path) -> list[str]:
    """Shards that the catalog got after the store's mark was written, and that the store does not have. Older ones may
    be lost; but a store that lacks these is as old as its mark."""
    there = sa.select(*shards.c["id", "path"]).where(shards.c.retired.is_(None))
    last = there.order_by(shards.c.id.desc()).limit(LOOKED_THROUGH).subquery()
    with connect.reading(catalog) as conn:
        newer = conn.scalars(sa.select(last.c.path).where(last.c.id > read_mark(store).newest_shard)).all()
    return [path for path in newer if shard_is_missing(store / path)]


def check_under_lease(catalog: sa.Engine, store: Path) -> StoreKey:
    """As `check`, for a worker that has opened its lease: the key stays right while the lease is live. A start that saw
    no live lease has written its nonce into the catalog before the lock is free; a later one sees this lease."""
    connect.transact(catalog, _hold)
    return check(catalog, store)


def pair(catalog: sa.Engine, store: Path, host: str, lease_seconds: float) -> None:
    """At a start on `host`: check that catalog and store go together, and give them another nonce where no lease is
    live. OtherStoreError; StoreUnavailableError."""
    check(catalog, store)
    with connect.reading(catalog) as conn:
        newest = newest_shard(conn)
    mark = read_mark(store)
    if newest < mark.newest_shard:
        raise OtherStoreError(RESTORED.format(store=store))
    if mark.newest_shard and (lacking := _lacking(catalog, store)):
        raise OtherStoreError(
            f"{store} lacks {len(lacking)} shards that the catalog knows, such as {lacking[-1]}: it is an older copy,"
            " or came from an older backup. Name the store in use in store.path; or, if featd is to go on with this"
            " one, run `featd db restored`"
        )
    _see_the_mark(catalog, store, host, lease_seconds)
    if connect.transact(catalog, _propose):
        connect.transact(catalog, _exchange, store)


def check_seat(catalog: sa.Engine, name: str, key: str | None) -> None:
    """SeatTakenError where a seat of this name, but with another state folder, has a live lease."""
    if key is None:
        return
    with connect.reading(catalog) as conn:
        left = leases.live_elsewhere(conn, name, key)
    if left is not None:
        raise SeatTakenError(
            f"another featd of the name {name} is at work, or was killed, and its lease lasts for another {left:.0f} s."
            " Give each featd a name of its own (`featd run --seat NAME`). One that comes back under its name need not"
            " wait where its folder, in the store's `run` or in host.state, was kept"
        )


def _see_the_mark(catalog: sa.Engine, store: Path, host: str, lease_seconds: float) -> None:
    """StoreUnavailableError where workers of other hosts use another store. The host that tidies is asked to write the
    mark of its store anew, which must appear in this one. On one host, the supervisor's lock makes sure of that."""
    with connect.reading(catalog) as conn:
        others = leases.live_hosts(conn) - {host}
    if not others:
        return
    asked = connect.transact(catalog, _ask_for_mark, host)
    deadline = clock.monotonic() + lease_seconds + ANSWER_SECONDS
    while read_mark(store).asked < asked:
        if clock.monotonic() > deadline:
            raise StoreUnavailableError(
                f"workers of {', '.join(sorted(others))} are running, and {store} does not show what featd writes into"
                " the store there: this store is a copy of the one in use, or not mounted. Name the one in use in"
                " store.path"
            )
        clock.sleep(0.1)
        with connect.reading(catalog) as conn:
            if not leases.live_hosts(conn) - {host}:
                return


def _ask_for_mark(conn: sa.Connection, host: str) -> int:
    hosts.leave_duties(conn, [hosts.TIDY], host)  # this host's janitor does not run
    hosts.ask_for(conn, [hosts.TIDY])
    return _asked(conn)


def mark_of(conn: sa.Connection) -> Mark:
    """What the store's mark should say now."""
    return Mark(newest_shard(conn), _asked(conn))


def _asked(conn: sa.Connection) -> int:
    return hosts.times_asked(conn, [hosts.TIDY])[hosts.TIDY]


def declare_restored(
    catalog: sa.Engine, store: Path, seats: Collection[str], policy: RetryPolicy
) -> tuple[int, int]:
    """This catalog and this store go together from now on, whatever they say: ends all open leases and begins a new
    history. Returns how many leases it ended, and how many shards the store lacks. No file is moved. The caller makes
    sure that none of `seats` runs. FeatdError while a worker of another seat is at work."""
    with connect.reading(catalog) as conn:
        marked = check_instance(store, store_key(conn))
        elsewhere = sorted({line.host for line in stats.workers(conn)} - {*seats})
    if elsewhere:
        raise FeatdError(
            f"workers of {', '.join(elsewhere)} are at work with this catalog: stop featd there, then try again (the"
            " lease of a worker that was killed, or of a backup, lasts for the workers.lease_seconds of its host)"
        )
    return begin_anew(catalog, store, policy, turn_of(marked))


def begin_anew(catalog: sa.Engine, store: Path, policy: RetryPolicy, turn: int = 0) -> tuple[int, int]:
    """As `declare_restored`, where the caller makes sure that no worker uses this catalog. `store` need not have a
    marker; it has one as the last step but the mark. `turn`: of the nonce that the store has."""
    with connect.reading(catalog) as conn:
        mark = mark_of(conn)
        open_leases = leases.all_open(conn)
    for lease in open_leases:
        connect.transact(catalog, leases.end_lease, lease, "the catalog was restored", policy)
    connect.transact(catalog, values.set_value, HISTORY, str(uuid.uuid4()))
    connect.transact(catalog, _propose, turn)
    connect.transact(catalog, _exchange, store)
    write_mark(store, mark)
    lost = 0
    for page in connect.walk(catalog, _shards_after, lambda shard: shard.id, 0):
        lost += sum(shard_is_missing(store / shard.path) for shard in page)
    return len(open_leases), lost


def _shards_after(conn: sa.Connection, after: int) -> list[Any]:
    statement = sa.select(shards.c.id, shards.c.path).where(shards.c.id > after, shards.c.live_rows > 0)
    return list(conn.execute(statement.order_by(shards.c.id).limit(LOOKED_THROUGH)))


def newest_shard(conn: sa.Connection) -> int:
    """The number of the newest shard; 0 where there is none."""
    return int(conn.scalar(sa.select(sa.func.max(shards.c.id))) or 0)


def _nonces(conn: sa.Connection) -> tuple[str | None, ...]:
    return tuple(values.get_value(conn, NONCES) or (None,))


def _hold(conn: sa.Connection) -> None:
    """Lock the row of the nonces until the transaction ends."""
    values.add_values(conn, {NONCES: [None]})
    values.lock(conn, NONCES)


def _propose(conn: sa.Connection, beyond: int | None = None) -> bool:
    """Put the next nonce into the catalog; what an earlier start proposed is taken up again. False where a lease is
    live meanwhile. `beyond`: in any case, and with a higher turn than this."""
    _hold(conn)
    now = _nonces(conn)
    if beyond is None and leases.any_live(conn):
        return False
    if beyond is not None or len(now) == 1:
        turn = max(*map(turn_of, now), beyond or 0) + 1
        values.set_value(conn, NONCES, [now[0], f"{turn}-{secrets.token_hex(8)}"])
    return True


def _exchange(conn: sa.Connection, store: Path) -> None:
    """Write the proposed nonce into the marker, then confirm it. In one transaction: who holds the row is the only one
    that writes the marker."""
    _hold(conn)
    proposed = _nonces(conn)[-1]
    try:
        write_marker(store, instance.instance_id(conn), proposed)
    except OSError as error:
        raise StoreUnavailableError(f"{store}: cannot write its marker: {reason(error)}") from error
    values.set_value(conn, NONCES, [proposed])
    values.set_value(conn, PLACE, str(store.resolve()))
