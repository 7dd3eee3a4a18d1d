"""The janitor's duties, one turn at a time: what it hears, and what it must live through."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect, leases
from featd.errors import CatalogUnavailableError
from featd.janitor import leftovers, process
from featd.janitor.leftovers import Leftovers
from featd.janitor.process import Janitor
from featd.processes.link import Channel, ChildLink, Heartbeat
from featd.processes.records import Death, StopRequest, Why
from featd.states import Lease
from running import Instance, make_instance


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    return make_instance(tmp_path / "instance", tmp_path / "images")


def ended_lease(instance: Instance) -> Lease:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    lease = connect.transact(
        catalog, leases.open_lease, host="h", pid=1, device="cpu", engine="x", lease_seconds=60
    )
    connect.transact(catalog, leases.end_lease, lease, "over", instance.settings.retry.policy)
    catalog.dispose()
    return lease


@pytest.fixture
def make(instance: Instance) -> Iterator[Callable[[], tuple[Janitor, Channel, Channel]]]:
    """A janitor in this process, its inbox, and what it reports."""
    made: list[tuple[Janitor, Channel, Channel, Heartbeat, int]] = []

    def build() -> tuple[Janitor, Channel, Channel]:
        inbox, reports, heartbeat = Channel(), Channel(), Heartbeat()
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        link = ChildLink(
            "janitor", reports=reports, inbox=inbox, heartbeat=heartbeat, wake_fd=wake, wake_fds={}
        )
        janitor = Janitor(instance.plan("janitor", drain=True), link)
        made.append((janitor, inbox, reports, heartbeat, wake))
        return janitor, inbox, reports

    yield build
    for janitor, inbox, reports, heartbeat, wake in made:
        janitor.close()
        inbox.close()
        reports.close()
        heartbeat.close()
        os.close(wake)


def test_an_outage_of_the_catalog_loses_no_record(
    make: Callable[[], tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    janitor, inbox, reports = make()
    janitor.begin()
    inbox.send(Death("worker-0", Why.CRASH, "x", Lease(1, "a" * 16), "/x"))
    inbox.send(Death("ingest", Why.FINISHED, "x", None, "/x"))
    monkeypatch.setattr(connect, "RETRY_SECONDS", 0.1)
    other = sqlite3.connect(instance.folder / "featd.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogUnavailableError):
        janitor.step(1e6)
    other.execute("ROLLBACK")
    other.close()
    janitor.step(2e6)
    news = [report.news for report in reports.receive()]
    assert [one.code for one in news if isinstance(one, StopRequest)] == [0]


def test_a_restarted_janitor_leaves_the_hands_file_of_a_worker_that_starts_meanwhile(
    make: Callable[[], tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    janitor, _, _ = make()
    folder = instance.plan("janitor").run_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stale.hands").touch()
    real = leases.open_leases

    def starts_meanwhile(conn: sa.Connection, host: str) -> list[leases.OpenLease]:
        found = real(conn, host)
        (folder / "new.hands").touch()
        return found

    monkeypatch.setattr(leases, "open_leases", starts_meanwhile)
    janitor.begin()
    assert [path.name for path in folder.glob("*.hands")] == ["new.hands"]


def test_a_look_for_leftovers_goes_on_in_later_turns(
    make: Callable[[], tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of millions of files must not keep the janitor from its other tasks, or from its heartbeat."""
    monkeypatch.setattr(process, "STEP_SECONDS", -1.0)
    monkeypatch.setattr(leftovers, "BATCH_FILES", 2)
    janitor, _, _ = make()
    lease = ended_lease(instance)
    day = instance.settings.store.path / "shards" / "2026-01-01"
    day.mkdir(parents=True)
    for n in range(5):
        (day / f"20260101T00000000000{n}-{lease.id}-{lease.token}-{n}.h5.part").touch()
    janitor.begin()
    left = []
    for turn in range(4):
        janitor.step(1e6 + turn)
        left.append(len(list(day.iterdir())))
    assert left == [3, 1, 0, 0]


def test_a_leftover_that_cannot_be_removed_costs_nothing_else(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = instance.settings
    catalog = connect.open_catalog(settings.catalog.url)
    lease = ended_lease(instance)
    day = settings.store.path / "shards" / "2026-01-01"
    day.mkdir(parents=True)
    stuck, other = (day / f"20260101T00000000000{n}-{lease.id}-{lease.token}-{n}.h5.part" for n in (0, 1))
    stuck.touch()
    other.touch()
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == stuck:
            raise PermissionError(1, "Operation not permitted")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    try:
        assert list(Leftovers(catalog, settings.store.path, 7.0, 0).look()) == [[other]]
        assert stuck.exists()
    finally:
        catalog.dispose()
