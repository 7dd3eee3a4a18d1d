"""What a failed attempt does to an image's row: the two budgets, suspects, back-off.

`judge` is the rule, without a database; the rest writes what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.counters import StateChanges
from featd.catalog.schema import attempts, images
from featd.states import MAX_KILLS, OUTCOMES, PRIORITY_BACKLOG, Kind, Outcome, RetryPolicy, State

MAX_MESSAGE = 2000
"""Characters of an error that are kept: the net's and the decoder's messages have no bound of their own."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What an image has used up at this version."""

    errors: int
    crashes: int
    kills: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a row. `delay_seconds` None keeps its place in the queue."""

    state: State
    errors: int
    crashes: int
    suspect: bool | None = None
    kind: Kind | None = None
    delay_seconds: float | None = None


def judge(kind: Kind, budget: Budget, policy: RetryPolicy) -> Verdict:
    """The rule for one failed attempt of `kind`, with `budget` as it stood before."""
    errors, crashes = budget.errors, budget.crashes
    match OUTCOMES[kind]:
        case Outcome.FAIL:
            return Verdict(State.FAILED, errors, crashes, kind=kind)
        case Outcome.GONE:
            return Verdict(State.GONE, errors, crashes)
        case Outcome.REQUEUE:
            return Verdict(State.PENDING, errors, crashes, delay_seconds=0.0)
        case Outcome.BACK_OFF:
            errors += 1
            if errors >= policy.max_errors:
                return Verdict(State.FAILED, errors, crashes, kind=kind)
            return Verdict(State.PENDING, errors, crashes, kind=kind, delay_seconds=policy.backoff(errors))
        case Outcome.CRASH:
            crashes += 1
            if crashes >= policy.max_crashes:
                return Verdict(State.FAILED, errors, crashes, suspect=True, kind=Kind.CRASH)
            return Verdict(State.PENDING, errors, crashes, suspect=True, kind=kind)
        case Outcome.KILLED:
            if budget.kills + 1 >= MAX_KILLS:
                return Verdict(State.FAILED, errors, crashes, suspect=True, kind=Kind.CRASH)
            return Verdict(State.PENDING, errors, crashes, suspect=True, kind=kind)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt to be recorded and applied to the row `image_id`, which stood in `state`."""

    image_id: int
    version: int
    kind: Kind
    message: str


def apply_verdict(
    conn: sa.Connection,
    lease_id: int,
    attempt: Attempt,
    budget: Budget,
    policy: RetryPolicy,
    changes: StateChanges,
    extra: dict[str, object] | None = None,
    settle_seconds: float = 0.0,
) -> State:
    """Record `attempt` and do to its claimed row what `judge` says. The caller holds the lease and the row."""
    verdict = judge(attempt.kind, budget, policy)
    message = attempt.message[:MAX_MESSAGE]
    record(conn, lease_id, [attempt])
    if verdict.kind is Kind.CRASH and attempt.kind is Kind.KILLED:
        message = f"killed {MAX_KILLS} times while this image alone was in hand; the last time: {message}"
        record(conn, lease_id, [Attempt(attempt.image_id, attempt.version, Kind.CRASH, message)])
    values: dict[str, object] = {
        "state": verdict.state,
        "errors": verdict.errors,
        "crashes": verdict.crashes,
        "error_kind": verdict.kind,
        "error": message,
        "lease_id": None,
        "updated_at": dialects.now(conn),
        **(extra or {}),
    }
    if verdict.suspect is not None:
        values["suspect"] = verdict.suspect
    if verdict.delay_seconds is not None:
        values["not_before"] = dialects.later(conn, verdict.delay_seconds or settle_seconds)
        # A row in back-off waits with the backlog: among the arrivals it would be looked at by every claim.
        values["priority"] = PRIORITY_BACKLOG
    conn.execute(sa.update(images).where(images.c.id == attempt.image_id).values(**values))
    changes.move(State.CLAIMED, verdict.state)
    return verdict.state


def record(conn: sa.Connection, lease_id: int | None, failed: Iterable[Attempt]) -> None:
    """Write `failed` into the history that `featd explain` shows."""
    moment = dialects.now(conn)
    for attempt in failed:
        conn.execute(
            sa.insert(attempts).values(
                image_id=attempt.image_id,
                version=attempt.version,
                lease_id=lease_id,
                at=moment,
                kind=attempt.kind,
                message=attempt.message[:MAX_MESSAGE],
            )
        )


def kills_of(conn: sa.Connection, image_ids: Sequence[int]) -> dict[int, int]:
    """Unexplained kills of each image, alone, at its version, since it was last failed for them."""
    last_crash = (
        sa.select(attempts.c.image_id, sa.func.max(attempts.c.id).label("id"))
        .where(attempts.c.kind == Kind.CRASH, attempts.c.image_id.in_(image_ids))
        .group_by(attempts.c.image_id)
        .subquery()
    )
    statement = (
        sa.select(attempts.c.image_id, sa.func.count().label("kills"))
        .join(images, (images.c.id == attempts.c.image_id) & (images.c.version == attempts.c.version))
        .outerjoin(last_crash, last_crash.c.image_id == attempts.c.image_id)
        .where(attempts.c.kind == Kind.KILLED, attempts.c.image_id.in_(image_ids))
        .where(attempts.c.id > sa.func.coalesce(last_crash.c.id, 0))
        .group_by(attempts.c.image_id)
    )
    return {row.image_id: row.kills for row in conn.execute(statement)}


def charge_deaths(
    conn: sa.Connection,
    lease_id: int,
    image_ids: Sequence[int],
    kind: Kind,
    message: str,
    policy: RetryPolicy,
    changes: StateChanges,
) -> None:
    """A process died with `image_ids` in hand, claimed under `lease_id`: one is charged, several are suspects."""
    mine = (images.c.lease_id == lease_id, images.c.state == State.CLAIMED, images.c.id.in_(image_ids))
    if len(image_ids) > 1:
        conn.execute(sa.update(images).where(*mine).values(suspect=True))
        return
    columns = (images.c.id, images.c.version, images.c.errors, images.c.crashes)
    row = conn.execute(dialects.lock_rows(conn, sa.select(*columns).where(*mine))).first()
    if row is None:
        return
    budget = Budget(row.errors, row.crashes, kills_of(conn, [row.id]).get(row.id, 0))
    apply_verdict(conn, lease_id, Attempt(row.id, row.version, kind, message), budget, policy, changes)
