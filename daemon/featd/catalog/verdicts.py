"""What a failed attempt does to an image's row: the two budgets, suspects, back-off.

`judge` is the rule, without a database; the rest writes what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from featd.catalog import dialects
from featd.catalog.counters import StateChanges
from featd.catalog.schema import attempts, images
from featd.states import MAX_KILLS, OUTCOMES, Kind, Outcome, RetryPolicy, State

MAX_MESSAGE = 2000
"""Characters of an error that are kept: the net's and the decoder's messages have no bound of their own."""


UNSPENT: dict[str, Any] = {"errors": 0, "crashes": 0, "kills": 0}
"""The budgets of a version that no attempt has failed at."""
CLEAN: dict[str, Any] = {**UNSPENT, "suspect": False, "error_kind": None, "error": None}
"""Budgets belong to a version: a vector or a new version clears them, with the error's kind and message."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many attempts of each kind an image has used up at this version."""

    errors: int
    crashes: int
    kills: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The new state of a row. With `delay_seconds` None it keeps its place in the queue."""

    state: State
    budget: Budget
    suspect: bool | None = None
    kind: Kind | None = None
    delay_seconds: float | None = None


def judge(kind: Kind, budget: Budget, policy: RetryPolicy) -> Verdict:
    """The verdict on one failed attempt of `kind`; `budget` is as it was before the attempt."""
    match OUTCOMES[kind]:
        case Outcome.FAIL:
            return Verdict(State.FAILED, budget, kind=kind)
        case Outcome.GONE:
            return Verdict(State.GONE, budget)
        case Outcome.REQUEUE:
            return Verdict(State.PENDING, budget, delay_seconds=0.0)
        case Outcome.BACK_OFF:
            budget = replace(budget, errors=budget.errors + 1)
            if budget.errors >= policy.max_errors:
                return Verdict(State.FAILED, budget, kind=kind)
            return Verdict(State.PENDING, budget, kind=kind, delay_seconds=policy.backoff(budget.errors))
        case Outcome.CRASH:
            budget = replace(budget, crashes=budget.crashes + 1)
            state = State.FAILED if budget.crashes >= policy.max_crashes else State.PENDING
            return Verdict(state, budget, suspect=True, kind=kind)
        case Outcome.KILLED:
            budget = replace(budget, kills=budget.kills + 1)
            if budget.kills >= MAX_KILLS:
                return Verdict(State.FAILED, budget, suspect=True, kind=Kind.CRASH)
            return Verdict(State.PENDING, budget, suspect=True, kind=kind)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt at one version of an image."""

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
    """Record `attempt` and apply the verdict to its claimed row. The caller holds the lease and the row."""
    verdict = judge(attempt.kind, budget, policy)
    message = attempt.message
    record(conn, lease_id, attempt)
    if verdict.kind is Kind.CRASH and attempt.kind is Kind.KILLED:
        message = f"killed {MAX_KILLS} times while this image alone was in hand; the last time: {message}"
        record(conn, lease_id, replace(attempt, kind=Kind.CRASH, message=message))
    values: dict[str, object] = {
        "state": verdict.state,
        **asdict(verdict.budget),
        "error_kind": verdict.kind,
        "error": kept(message),
        "lease_id": None,
        "updated_at": dialects.now(conn),
        **(extra or {}),
    }
    if verdict.suspect is not None:
        values["suspect"] = verdict.suspect
    if verdict.delay_seconds is not None:
        values["not_before"] = dialects.later(conn, verdict.delay_seconds or settle_seconds)
    conn.execute(sa.update(images).where(images.c.id == attempt.image_id).values(**values))
    changes.move(State.CLAIMED, verdict.state)
    return verdict.state


def record(conn: sa.Connection, lease_id: int, failed: Attempt) -> None:
    """Write `failed` into the history that `featd explain` shows."""
    row = {**asdict(failed), "message": kept(failed.message), "lease_id": lease_id, "at": dialects.now(conn)}
    conn.execute(sa.insert(attempts).values(**row))


def kept(message: str) -> str:
    """A message as it is stored: of limited length, and without characters that a database refuses."""
    text = message[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\x00")


def charge_deaths(
    conn: sa.Connection,
    lease_id: int,
    image_ids: Sequence[int],
    kind: Kind,
    message: str,
    policy: RetryPolicy,
    changes: StateChanges,
) -> None:
    """A process died with `image_ids`, claimed under `lease_id`: a single image is charged, several become suspects."""
    mine = (images.c.lease_id == lease_id, images.c.state == State.CLAIMED, dialects.has_id(conn, image_ids))
    if len(image_ids) > 1:
        dialects.lock_images(conn, *mine)
        conn.execute(sa.update(images).where(*mine).values(suspect=True))
        return
    columns = images.c["id", "version", "errors", "crashes", "kills"]
    row = conn.execute(dialects.lock_rows(conn, sa.select(*columns).where(*mine))).first()
    if row is None:
        return
    budget = Budget(row.errors, row.crashes, row.kills)
    apply_verdict(conn, lease_id, Attempt(row.id, row.version, kind, message), budget, policy, changes)
