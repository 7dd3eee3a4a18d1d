"""Settling: the one transaction that records a sealed shard and makes its images done.

The shard is on stable storage before this is called. Rows become done here, and where a repair takes over a shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from featd.catalog import counters, dialects, feed, instance, leases, verdicts
from featd.catalog.counters import StateChanges
from featd.catalog.schema import images, shards
from featd.catalog.schema import leases as lease_table
from featd.catalog.verdicts import Attempt, Budget
from featd.crash_points import CrashPoint, crash_point
from featd.states import ClaimedImage, Failure, Kind, Lease, RetryPolicy, SealedShard, State, Unchanged

_COUNT = (
    sa.update(lease_table)
    .where(lease_table.c.id == sa.bindparam("lease"))
    .values(
        done=lease_table.c.done + sa.bindparam("new_done"),
        failed=lease_table.c.failed + sa.bindparam("new_failed"),
        settles=lease_table.c.settles + 1,
    )
)

FORGOTTEN: dict[str, None] = dict.fromkeys(("shard_id", "shard_row", "shard_version", "content"))
"""The fields of a row whose vector is lost."""


class Made(NamedTuple):
    """The vector of `image`, made from `content`, is in row `shard_row` of the new shard."""

    image: ClaimedImage
    shard_row: int
    content: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The file is unchanged, and the shard that has its vector is missing or damaged."""

    image: ClaimedImage
    shard_id: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides the vectors' values. A settle compares it with the catalog's; the first one sets it."""

    fingerprint: str
    spec: dict[str, Any]
    golden: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settlement:
    """The outcomes of some of a lease's rows."""

    shard: SealedShard | None = None
    made: Sequence[Made] = ()
    unchanged: Sequence[Unchanged] = ()
    failures: Sequence[Failure] = ()
    lost: Sequence[Lost] = ()

    def __bool__(self) -> bool:
        return bool(self.shard or self.unchanged or self.failures or self.lost)


def settle(
    conn: sa.Connection, lease: Lease, settlement: Settlement, identity: Identity, policy: RetryPolicy
) -> Counter[State]:
    """Record the outcomes of rows claimed under `lease`; returns how many entered each state. LeaseLostError."""
    leases.hold(conn, lease)
    held = instance.fingerprint(conn)
    instance.check_fingerprint(held, identity.fingerprint)
    changes = StateChanges()
    live: list[int] = []
    rows = _lock(conn, lease, settlement)
    if settlement.shard is not None:
        if held is None:
            instance.fix_fingerprint(conn, identity.fingerprint, identity.spec, identity.golden)
        _settle_made(conn, lease, settlement.shard, settlement.made, rows, changes, live)
    _settle_unchanged(conn, lease, settlement.unchanged, rows, changes, live)
    _settle_lost(conn, lease, settlement.lost, rows, changes)
    for failure in settlement.failures:
        if failure.image.id in rows:
            _settle_failure(conn, lease, failure, rows[failure.image.id], policy, changes)
    settled = Counter({state: rows for state, rows in changes.items() if rows > 0})
    counted = {"new_done": settled[State.DONE], "new_failed": settled[State.FAILED]}
    conn.execute(_COUNT, {"lease": lease.id, **counted})
    feed.note(conn, live)
    counters.apply(conn, changes)
    crash_point(CrashPoint.SETTLING)
    return settled


def find_shard(conn: sa.Connection, lease: Lease, name: str) -> bool:
    """Whether a shard is recorded: the look-up after a COMMIT whose reply was lost.

    Locks the lease row first, so that it waits for that COMMIT if it is still running.
    """
    conn.execute(dialects.lock_rows(conn, sa.select(lease_table.c.id).where(lease_table.c.id == lease.id)))
    return conn.execute(sa.select(shards.c.id).where(shards.c.name == name)).first() is not None


def count_settles(conn: sa.Connection, lease: Lease) -> int:
    """How often this lease has settled: the look-up after a lost reply where no shard was settled."""
    statement = sa.select(lease_table.c.settles).where(lease_table.c.id == lease.id)
    return int(conn.execute(dialects.lock_rows(conn, statement)).scalar_one())


def _lock(conn: sa.Connection, lease: Lease, settlement: Settlement) -> dict[int, sa.Row[*tuple[Any, ...]]]:
    """Lock the settlement's rows that still belong to this lease, in order of id."""
    outcomes: list[Made | Unchanged | Failure | Lost] = [*settlement.made, *settlement.unchanged]
    outcomes += [*settlement.failures, *settlement.lost]
    ids = dialects.as_ids(conn, sorted([outcome.image.id for outcome in outcomes]))
    rows = conn.execute(_claimed_rows(conn), {"given_ids": ids, "lease": lease.id}).all()
    return {row[0]: row for row in rows}


@dialects.once
def _claimed_rows(conn: sa.Connection) -> sa.Select[Any]:
    columns = images.c["id", "version", "errors", "crashes", "kills", "shard_id", "content"]
    statement = (
        sa.select(*columns)
        .where(
            dialects.has_given_id(conn),
            images.c.lease_id == sa.bindparam("lease"),
            images.c.state == State.CLAIMED,
        )
        .order_by(images.c.id)
    )
    return dialects.lock_rows(conn, statement)


def _clean_values(conn: sa.Connection, state: State) -> dict[str, Any]:
    return {**verdicts.CLEAN, "state": state, "lease_id": None, "updated_at": dialects.now(conn)}


def _raised_values(conn: sa.Connection, delay_seconds: float = 0.0) -> dict[str, Any]:
    """For a file that changed while its vector was made: pending at the new version, no budget spent."""
    not_before = dialects.later(conn, delay_seconds) if delay_seconds else dialects.now(conn)
    return {**_clean_values(conn, State.PENDING), "not_before": not_before}


def _settle_made(
    conn: sa.Connection,
    lease: Lease,
    shard: SealedShard,
    made: Sequence[Made],
    rows: dict[int, sa.Row[*tuple[Any, ...]]],
    changes: StateChanges,
    live: list[int],
) -> None:
    done: list[tuple[int, int, int, str]] = []
    raised: list[tuple[int, int, int, str]] = []
    left: list[int] = []
    for image, shard_row, content in made:
        if (row := rows.get(image.id)) is None:
            continue
        _, version, _, _, _, shard_id, _ = row  # by name takes ten times as long
        if shard_id is not None:
            left.append(shard_id)
        chosen = done if version == image.version else raised
        chosen.append((image.id, shard_row, image.version, content))
    new_row = {**asdict(shard), "live_rows": len(done) + len(raised), "lease_id": lease.id}
    shard_id = conn.execute(_add_shard(conn), new_row).scalar_one()
    for state, some in ((State.DONE, done), (State.PENDING, raised)):
        if some:
            settling = _settling_done(conn) if state is State.DONE else _settling_raised(conn)
            updated = dialects.write_each(conn, settling, some, lease=lease.id, new_shard=shard_id)
            changes.move(State.CLAIMED, state, updated)
    live += [row[0] for row in done]
    leave_shards(conn, left)


@dialects.once
def _add_shard(conn: sa.Connection) -> Any:
    return sa.insert(shards).values(created_at=dialects.now(conn)).returning(shards.c.id)


@dialects.once
def _settling_done(conn: sa.Connection) -> sa.Update:
    return _settling(conn, _clean_values(conn, State.DONE))


@dialects.once
def _settling_raised(conn: sa.Connection) -> sa.Update:
    return _settling(conn, _raised_values(conn))


def _settling(conn: sa.Connection, values: dict[str, Any]) -> sa.Update:
    claimed = (images.c.lease_id == sa.bindparam("lease")) & (images.c.state == State.CLAIMED)
    per_row = ("shard_row", "shard_version", "content")
    return dialects.updating_each(conn, claimed, per_row, {**values, "shard_id": sa.bindparam("new_shard")})


def leave_shards(conn: sa.Connection, shard_ids: Sequence[int | None]) -> None:
    """Count down the live rows of shards whose rows name another shard now."""
    left = Counter(shard_id for shard_id in shard_ids if shard_id is not None)
    for shard_id in sorted(left):
        conn.execute(
            sa.update(shards)
            .where(shards.c.id == shard_id)
            .values(live_rows=shards.c.live_rows - left[shard_id])
        )


def _settle_unchanged(
    conn: sa.Connection,
    lease: Lease,
    unchanged: Sequence[Unchanged],
    rows: dict[int, sa.Row[*tuple[Any, ...]]],
    changes: StateChanges,
    live: list[int],
) -> None:
    """Done again with the existing vector. Never writes shard_id or shard_row, which compaction may have changed."""
    claimed = (images.c.lease_id == lease.id) & (images.c.state == State.CLAIMED)
    mine = [one for one in unchanged if one.image.id in rows]
    same = [
        one
        for one in mine
        if rows[one.image.id].version == one.image.version
        and rows[one.image.id].content == one.content
        and rows[one.image.id].shard_id is not None
    ]
    versions = [(one.image.id, one.image.version) for one in same]
    done = dialects.update_each(conn, claimed, ("shard_version",), versions, _clean_values(conn, State.DONE))
    again = sorted({one.image.id for one in mine} - {one.image.id for one in same})
    if again:
        conn.execute(
            sa.update(images).where(dialects.has_id(conn, again), claimed).values(**_raised_values(conn))
        )
    live += [one.image.id for one in same]
    changes.move(State.CLAIMED, State.DONE, done)
    changes.move(State.CLAIMED, State.PENDING, len(again))


def _settle_lost(
    conn: sa.Connection,
    lease: Lease,
    lost: Sequence[Lost],
    rows: dict[int, sa.Row[*tuple[Any, ...]]],
    changes: StateChanges,
) -> None:
    """Pending, and without the vector that is lost, so that it is made again."""
    mine = [one for one in lost if one.image.id in rows and rows[one.image.id].shard_id == one.shard_id]
    # Compaction has moved the others meanwhile, into a shard that was not looked at.
    moved = sorted({one.image.id for one in lost if one.image.id in rows} - {one.image.id for one in mine})
    if moved:
        again = sa.update(images).where(dialects.has_id(conn, moved)).values(**_raised_values(conn))
        changes.move(State.CLAIMED, State.PENDING, dialects.changed(conn, again))
    if not mine:
        return
    which = dialects.has_id(conn, sorted(one.image.id for one in mine))
    conn.execute(sa.update(images).where(which).values(**_raised_values(conn), **FORGOTTEN))
    leave_shards(conn, [one.shard_id for one in mine])
    remove_nameless(conn, {one.shard_id for one in mine})
    changes.move(State.CLAIMED, State.PENDING, len(mine))


def remove_nameless(conn: sa.Connection, shard_ids: Collection[int]) -> None:
    """Remove the rows of those lost shards that no image names: what is left of their files is unknown from now on."""
    # Its worker may still look for its row.
    at_work = sa.select(lease_table.c.id).where(lease_table.c.ended_at.is_(None))
    nameless = (shards.c.id.in_(sorted(shard_ids)), shards.c.live_rows == 0)
    # The newest row stays: it tells how far the catalog has come.
    older = shards.c.id < sa.select(sa.func.max(shards.c.id)).scalar_subquery()
    conn.execute(sa.delete(shards).where(*nameless, older, shards.c.lease_id.not_in(at_work)))


def _settle_failure(
    conn: sa.Connection,
    lease: Lease,
    failure: Failure,
    row: sa.Row[*tuple[Any, ...]],
    policy: RetryPolicy,
    changes: StateChanges,
) -> None:
    changed: dict[str, Any] = {}
    if failure.kind is Kind.READ_CHANGED and failure.size is not None:
        changed = {"size": failure.size, "mtime_ns": failure.mtime_ns}
    if row.version != failure.image.version:
        # Ingest has seen a newer version of the file than the one that failed: the row starts anew.
        values = {**_raised_values(conn, failure.settle_seconds), **changed}
        conn.execute(sa.update(images).where(images.c.id == row.id).values(**values))
        changes.move(State.CLAIMED, State.PENDING)
        return
    if not failure.counted:
        later = {
            "not_before": dialects.later(conn, policy.backoff(1)),
            "error": verdicts.kept(failure.message),
        }
        values = {"state": State.PENDING, "lease_id": None, "updated_at": dialects.now(conn), **later}
        conn.execute(sa.update(images).where(images.c.id == row.id).values(**values))
        changes.move(State.CLAIMED, State.PENDING)
        return
    if changed:
        changed |= {**verdicts.CLEAN, "version": row.version + 1, "error": verdicts.kept(failure.message)}
    verdicts.apply_verdict(
        conn,
        lease.id,
        Attempt(row.id, failure.image.version, failure.kind, failure.message),
        Budget(row.errors, row.crashes, row.kills),
        policy,
        changes,
        changed,
        failure.settle_seconds,
    )
