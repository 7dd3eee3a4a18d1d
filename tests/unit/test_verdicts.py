"""The rule for a failed attempt, without a database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd.catalog.verdicts import Budget, Verdict, judge, kept
from featd.states import MAX_BACKOFF_SECONDS, MAX_KILLS, OUTCOMES, Kind, Outcome, RetryPolicy, State

POLICY = RetryPolicy(max_errors=3, max_crashes=2, backoff_seconds=30.0)
FRESH = Budget(0, 0, 0)


def test_every_kind_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(Kind)


def test_back_off_doubles_up_to_its_cap() -> None:
    waits = [RetryPolicy(max_errors=99, backoff_seconds=30.0).backoff(n) for n in range(1, 10)]
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, MAX_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS]


@pytest.mark.parametrize("kind", [kind for kind, outcome in OUTCOMES.items() if outcome is Outcome.BACK_OFF])
def test_errors_spend_their_own_budget(kind: Kind) -> None:
    assert judge(kind, Budget(1, 1, 2), POLICY) == Verdict(
        State.PENDING, Budget(2, 1, 2), kind=kind, delay_seconds=60.0
    )
    assert judge(kind, Budget(2, 1, 2), POLICY) == Verdict(State.FAILED, Budget(3, 1, 2), kind=kind)


def test_crashes_spend_theirs() -> None:
    assert judge(Kind.CRASH, Budget(2, 0, 3), POLICY).state is State.PENDING
    last = judge(Kind.CRASH, Budget(2, 1, 3), POLICY)
    assert last == Verdict(State.FAILED, Budget(2, 2, 3), suspect=True, kind=Kind.CRASH)


def test_kills_are_neither_errors_nor_crashes() -> None:
    budget = Budget(2, 1, 0)
    for kills in range(1, MAX_KILLS):
        verdict = judge(Kind.KILLED, budget, POLICY)
        assert verdict == Verdict(State.PENDING, Budget(2, 1, kills), suspect=True, kind=Kind.KILLED)
        budget = verdict.budget
    last = judge(Kind.KILLED, budget, POLICY)
    assert (last.state, last.kind) == (State.FAILED, Kind.CRASH)


@given(st.sampled_from(Kind), st.builds(Budget, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)))
def test_an_attempt_spends_at_most_one(kind: Kind, budget: Budget) -> None:
    verdict = judge(kind, budget, POLICY)
    after = verdict.budget
    spent = (after.errors - budget.errors, after.crashes - budget.crashes, after.kills - budget.kills)
    free = OUTCOMES[kind] in (Outcome.FAIL, Outcome.GONE, Outcome.REQUEUE)
    assert sorted(spent) == ([0, 0, 0] if free else [0, 0, 1])
    if verdict.state is State.FAILED:
        assert verdict.kind is not None


@given(st.text(st.characters(codec=None)))
def test_any_message_can_be_stored(message: str) -> None:
    assert "\0" not in kept(message)
    kept(message).encode("utf-8")
