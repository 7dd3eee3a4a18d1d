"""Whether a drain is over: everything scanned, nothing pending, nothing claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, counters, hosts, stats
from featd.errors import EXIT_ERROR, EXIT_FAILED_ROWS, EXIT_OK, EXIT_OUT_OF_REACH
from featd.processes.records import StopRequest
from featd.roots import RootState, root_state
from featd.states import State

DOUBTED_ROUNDS = 3
"""After so many rounds in which no file of a root could be read, a drain does not wait for it."""
AGAIN = "mount them, then `featd run --drain` again"


@dataclass(frozen=True, slots=True)
class Start:
    """When a drain began (monotonic seconds), and how many images were done then."""

    at: float
    done: int


def begin(catalog: sa.Engine) -> Start:
    """To be called before any worker claims."""
    with connect.reading(catalog) as conn:
        return Start(clock.monotonic(), counters.counts(conn)[State.DONE])


def look(
    catalog: sa.Engine, host: str, roots: Mapping[str, str], start: Start, held: str = ""
) -> StopRequest | None:
    """How the drain ended; None while there is work that this host's workers can do, now or after a back-off. `roots`:
    what the catalog calls them -> their folders. `held` says why they have not claimed for a while."""
    with connect.reading(catalog) as conn:
        counts = counters.counts(conn)
        open_rows = counts[State.PENDING] + counts[State.CLAIMED]
        waiting = stats.pending_roots(conn) if open_rows else set()
        reports = hosts.ingest_reports(conn)
        working = bool(counts[State.CLAIMED]) and (not held or stats.claims_of(conn, host))
        told = [worker.shares.get("doubted", {}) for worker in stats.workers(conn) if worker.host == host]
    if open_rows == 0:
        mine = reports[host].report if host in reports else {}
        unseen = [
            *_unseen(roots),
            *(f"{root} (images missing: see `featd status`)" for root in mine.get("held", [])),
        ]
        return _finished(counts, start, unseen, mine.get("left_out", 0))
    offline = {root: root_state(Path(roots.get(root, root))) for root in waiting}
    unreachable = {
        root for root, state in offline.items() if state is not RootState.ONLINE or root not in roots
    }
    doubted = {root for rounds in told for root, count in rounds.items() if count >= DOUBTED_ROUNDS}
    if working:
        return None
    if waiting - unreachable - doubted:
        left = f"not drained, {_images(open_rows)} left"
        again = "then `featd run --drain` again"
        return StopRequest(EXIT_OUT_OF_REACH, f"{left}: {held}, {again}") if held else None
    names = ", ".join(
        f"{root} ({offline[root] if root in roots else 'not in the configuration'})"
        for root in sorted(unreachable)
    )
    names = ", ".join(filter(None, (names, *(f"{root} (no file can be read)" for root in sorted(doubted)))))
    waits = f"{_images(counts[State.PENDING])} of offline roots: {names}"
    return StopRequest(EXIT_ERROR, f"drained, except for {waits}: {AGAIN}")


def _unseen(roots: Mapping[str, str]) -> list[str]:
    """The roots that could not be scanned, each with its state."""
    states = {root: root_state(Path(place)) for root, place in roots.items()}
    return [
        f"{root} ({state})"
        for root, state in states.items()
        if state not in (RootState.ONLINE, RootState.EMPTY)
    ]


def _finished(counts: Mapping[State, int], start: Start, unseen: Sequence[str], unread: int) -> StopRequest:
    seconds = max(clock.monotonic() - start.at, 1e-3)
    done = max(counts[State.DONE] - start.done, 0)
    message = "drained: nothing was left to do"
    if done:
        message = (
            f"drained: {_images(done)} done in {seconds:,.1f} s, {done / seconds:,.1f} images/s on average"
        )
    if start.done:
        message += f"; {counts[State.DONE]:,} done in all"
    if counts[State.FAILED]:
        message += f"; {counts[State.FAILED]:,} failed (`featd failures` lists them)"
    if unread:
        message += f"; {unread:,} folders could not be read: see the log"
    if unseen:
        message += f"; offline roots were not scanned: {', '.join(unseen)}: {AGAIN}"
    if unseen or unread:
        return StopRequest(EXIT_ERROR, message)
    return StopRequest(EXIT_FAILED_ROWS if counts[State.FAILED] else EXIT_OK, message)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
