"""Whether a drain is over: everything scanned, nothing pending, nothing claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, counters, stats
from featd.errors import EXIT_ERROR, EXIT_FAILED_ROWS, EXIT_OK
from featd.roots import RootState, root_state
from featd.states import State


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended, for the exit code and for people."""

    code: int
    message: str


def look(catalog: sa.Engine, roots: Sequence[str]) -> Drained | None:
    """None while there is work that this host's workers can do, now or after a back-off."""
    with connect.reading(catalog) as conn:
        counts = counters.counts(conn)
        open_rows = counts[State.PENDING] + counts[State.CLAIMED]
        waiting = stats.pending_roots(conn) if open_rows else set()
    if open_rows == 0:
        return _unseen(roots) or _finished(counts)
    offline = {root: root_state(Path(root)) for root in waiting}
    unreachable = {
        root for root, state in offline.items() if state is not RootState.ONLINE or root not in roots
    }
    if counts[State.CLAIMED] or waiting - unreachable:
        return None
    names = ", ".join(
        f"{root} ({offline[root] if root in roots else 'not in the configuration'})"
        for root in sorted(unreachable)
    )
    return Drained(
        EXIT_ERROR, f"drained, but {counts[State.PENDING]} images wait for a root that is offline: {names}"
    )


def _unseen(roots: Sequence[str]) -> Drained | None:
    """A root that could not be looked into: what is new there is not known."""
    states = {root: root_state(Path(root)) for root in roots}
    away = [
        f"{root} ({state})"
        for root, state in states.items()
        if state in (RootState.MISSING, RootState.UNREADABLE)
    ]
    if not away:
        return None
    return Drained(
        EXIT_ERROR, f"drained, but a root is offline, what is new in it is not known: {', '.join(away)}"
    )


def _finished(counts: Mapping[State, int]) -> Drained:
    if counts[State.FAILED]:
        return Drained(
            EXIT_FAILED_ROWS,
            f"drained: {counts[State.DONE]} images done, {counts[State.FAILED]} failed (`featd failures` lists them)",
        )
    return Drained(EXIT_OK, f"drained: {counts[State.DONE]} images done")
