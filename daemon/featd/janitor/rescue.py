"""Rescuing: ending the leases of dead workers, whose rows become pending, and charging what they had in hand.

The hands file of a lease is read before the lease is ended and removed afterwards: if the janitor dies in between,
the next one does the same again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, leases
from featd.catalog.leases import ADOPTION, InHand, OpenLease
from featd.processes.hands import read_hands
from featd.processes.signals import is_running
from featd.states import Kind, Lease, RetryPolicy

log = logs.get("janitor")

HANDS_SUFFIX = ".hands"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a worker died, as its supervisor saw it. `kind` is None where no image in hand is to blame."""

    kind: Kind | None
    message: str


EVERYTHING_DIED = Cause(
    Kind.KILLED, "all of featd on this host died at once (a power cut, or everything was killed)"
)
SILENT = Cause(None, "the lease expired: the worker did not renew it")


class Rescue:
    """Ends leases of workers that are known to be dead, or whose lease has expired."""

    def __init__(
        self,
        catalog: sa.Engine,
        run_folder: Path,
        host: str,
        policy: RetryPolicy,
        seat_key: str | None = None,
    ) -> None:
        """host: the name of the seat. seat_key: what the leases of this run of it carry."""
        self._catalog = catalog
        self._run_folder = run_folder
        self._host = host
        self._policy = policy
        self._seat_key = seat_key

    def end_all_of_this_seat(self) -> int:
        """At start, before any worker claims: workers of an earlier supervisor are dead, since it held the lock.

        A janitor that was restarted finds workers of its own supervisor: their leases stay.
        """
        # Listed before the leases are read: a worker may start meanwhile.
        hands = list(self._run_folder.glob(f"*{HANDS_SUFFIX}"))
        with connect.reading(self._catalog) as conn:
            open_leases = leases.open_leases(conn, self._host, self._seat_key)
        alive = {one.lease.token for one in open_leases if self._is_sibling(one) or _is_adoption(one)}
        dead = [one.lease for one in open_leases if one.lease.token not in alive]
        ended = sum(self.end(lease, EVERYTHING_DIED) for lease in dead)
        for path in hands:
            if path.name.removesuffix(HANDS_SUFFIX) not in alive:
                _remove(path)
        return ended

    def end_expired(self) -> int:
        """End the expired leases of all hosts."""
        with connect.reading(self._catalog) as conn:
            expired = leases.expired_leases(conn)
        return sum(self.end(one.lease, SILENT, one.host) for one in expired)

    def end(self, lease: Lease, cause: Cause, host: str | None = None) -> bool:
        """End one lease; the images that its worker had in its net are charged, unless no image is to blame."""
        hands = self._run_folder / f"{lease.token}{HANDS_SUFFIX}"
        in_hand = _in_hand(hands, cause)
        ended = connect.transact(self._catalog, leases.end_lease, lease, cause.message, self._policy, in_hand)
        _remove(hands)
        if ended is not None:
            released = f"released its {ended} claimed images" if ended else "it had claimed no images"
            log.info(
                "lease_rescued",
                f"ended the lease of a dead worker; {released}",
                lease=lease.id,
                why=cause.message.partition("; its last words")[0],
                images_in_net=len(in_hand.images) if in_hand else 0,
                host=host or self._host,
            )
        return ended is not None

    def _is_sibling(self, one: OpenLease) -> bool:
        """Whether it is that of another child of this process's supervisor. The pid alone does not tell: in a container
        it is the same in each run."""
        return one.seat == self._seat_key and _is_sibling(one.pid)


def _is_adoption(one: OpenLease) -> bool:
    """Whether it is that of a `featd adopt` which is at work beside featd."""
    return one.device == ADOPTION and is_running(one.pid)


def _is_sibling(pid: int) -> bool:
    """Whether `pid` is another child of this process's supervisor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return pid != os.getpid() and fields[0] != "Z" and int(fields[1]) == os.getppid()


def _remove(path: Path) -> None:
    """Remove a hands file. Where that fails it does no harm, for its lease has ended."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning(
            "hands_file_not_removed",
            "cannot delete this file; safe to ignore",
            file=path,
            error=error.strerror,
        )


def _in_hand(hands: Path, cause: Cause) -> InHand | None:
    report = read_hands(hands)
    if report is None or report.escalated or cause.kind is None or not report.forward:
        return None
    return InHand(report.forward, cause.kind, cause.message)
