"""Ending the leases of the dead: their rows become pending, and what was in their hands is accounted for.

The hands file of a lease is read before its end is recorded and removed after: whenever the janitor itself
dies, the next one does the same again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, leases
from featd.catalog.leases import InHand, Lease, OpenLease
from featd.processes.hands import read_hands
from featd.states import Kind, RetryPolicy

log = logs.get("janitor")

HANDS_SUFFIX = ".hands"


@dataclass(frozen=True, slots=True)
class Death:
    """Why a worker died, as its supervisor saw it. `kind` is None where nobody in hand is to blame."""

    kind: Kind | None
    message: str


EVERYTHING_DIED = Death(
    Kind.KILLED, "everything on this host died at once (a power cut, a kill of all of featd)"
)
SILENT = Death(None, "its lease expired")


class Rescue:
    """Ends leases of workers that are known to be dead, or whose lease has expired."""

    def __init__(self, catalog: sa.Engine, run_folder: Path, host: str, policy: RetryPolicy) -> None:
        self._catalog = catalog
        self._run_folder = run_folder
        self._host = host
        self._policy = policy

    def end_all_of_this_host(self) -> int:
        """At start, before any worker claims: no worker of before is alive, its supervisor held the lock.

        But a janitor that is started again finds workers of its own supervisor at work: those stay.
        """
        with connect.reading(self._catalog) as conn:
            open_leases = leases.open_leases(conn, self._host)
        alive = {lease.token for lease in open_leases if _is_sibling(lease.pid)}
        dead = [lease for lease in open_leases if lease.token not in alive]
        ended = sum(self.end(_key(lease), EVERYTHING_DIED) for lease in dead)
        self._remove_stale_hands(alive)
        return ended

    def end_expired(self) -> int:
        """Leases of any host that nobody renews any more."""
        with connect.reading(self._catalog) as conn:
            expired = leases.expired_leases(conn)
        return sum(self.end(_key(lease), SILENT, lease) for lease in expired)

    def end(self, lease: Lease, death: Death, shown: OpenLease | None = None) -> bool:
        """End one lease; what its worker had in its net when it died is charged, unless nobody is to blame."""
        hands = self._run_folder / f"{lease.token}{HANDS_SUFFIX}"
        in_hand = _in_hand(hands, death)
        ended = connect.transact(
            self._catalog, lambda conn: leases.end_lease(conn, lease, death.message, self._policy, in_hand)
        )
        _remove(hands)
        if ended:
            log.info(
                "rescued",
                "its claimed images are pending again",
                lease=lease.id,
                why=death.message.partition("; its last words")[0],
                in_hand=len(in_hand.images) if in_hand else 0,
                host=shown.host if shown else self._host,
            )
        return ended

    def _remove_stale_hands(self, alive: set[str]) -> None:
        """Hands files of leases that ended while nobody could remove them."""
        for path in self._run_folder.glob(f"*{HANDS_SUFFIX}"):
            if path.name.removesuffix(HANDS_SUFFIX) not in alive:
                _remove(path)


def _is_sibling(pid: int) -> bool:
    """Whether `pid` is another child of this process's supervisor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return pid != os.getpid() and fields[0] != "Z" and int(fields[1]) == os.getppid()


def _remove(path: Path) -> None:
    """A hands file that cannot be removed is of an ended lease: it says nothing any more."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("not_removed", "it stays behind and does no harm", file=path, error=error.strerror)


def _key(lease: OpenLease) -> Lease:
    return Lease(lease.id, lease.token)


def _in_hand(hands: Path, death: Death) -> InHand | None:
    report = read_hands(hands)
    if report is None or report.escalated or death.kind is None or not report.forward:
        return None
    return InHand(report.forward, death.kind, death.message)
