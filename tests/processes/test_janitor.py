"""The janitor's duties, one turn at a time: what it hears, and what it must live through."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd import clock, logs
from featd.catalog import connect, enqueue, feed, leases, schema, stats, values
from featd.catalog.enqueue import FoundFile
from featd.errors import CatalogUnavailableError
from featd.janitor import leftovers, process, task
from featd.janitor.leftovers import Leftovers
from featd.janitor.process import Janitor
from featd.processes.link import Channel, ChildLink, Heartbeat
from featd.processes.records import Death, StopRequest, Why
from featd.shards.layout import ShardName
from featd.shards.store import read_mark
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
def make(instance: Instance) -> Iterator[Callable[..., tuple[Janitor, Channel, Channel]]]:
    """A janitor in this process, its inbox, and what it reports."""
    made: list[tuple[Janitor, Channel, Channel, Heartbeat, int]] = []

    def build(*, drain: bool = True, **changed: Any) -> tuple[Janitor, Channel, Channel]:
        inbox, reports, heartbeat = Channel(), Channel(), Heartbeat()
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        link = ChildLink(
            "janitor", reports=reports, inbox=inbox, heartbeat=heartbeat, wake_fd=wake, wake_fds={}
        )
        janitor = Janitor(replace(instance.plan("janitor", drain=drain), **changed), link)
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
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
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
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    janitor, _, _ = make()
    folder = instance.plan("janitor").run_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stale.hands").touch()
    real = leases.open_leases

    def starts_meanwhile(conn: sa.Connection, *seat: Any) -> list[leases.OpenLease]:
        found = real(conn, *seat)
        (folder / "new.hands").touch()
        return found

    monkeypatch.setattr(leases, "open_leases", starts_meanwhile)
    janitor.begin()
    assert [path.name for path in folder.glob("*.hands")] == ["new.hands"]


def test_a_look_for_leftovers_goes_on_in_later_turns(
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of millions of files must not keep the janitor from its other tasks, or from its heartbeat."""
    monkeypatch.setattr(task, "STEP_SECONDS", -1.0)
    monkeypatch.setattr(leftovers, "BATCH_FILES", 2)
    janitor, _, _ = make()
    lease = ended_lease(instance)
    day = instance.settings.store.path / "shards" / "2026-01-01"
    day.mkdir(parents=True)
    for n in range(5):
        (day / f"20260101T00000000000{n}-{lease.id}-{lease.token}-{n}.h5.part").touch()
    janitor.begin()
    left = []
    for turn in range(12):
        janitor.step(1e6 + turn)
        left.append(len(list(day.iterdir())))
    assert sorted(set(left), reverse=True) == [5, 4, 3, 2, 1, 0], "a file at a time"


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
        assert list(Leftovers(catalog, settings.store.path, 7.0, 0).look()) == [[], [other]]
        assert stuck.exists()
    finally:
        catalog.dispose()


class Store:
    """A store with shards of three kinds: named by the catalog, of an ended lease, of an unknown lease."""

    def __init__(self, instance: Instance) -> None:
        self.path = instance.settings.store.path
        self.catalog = connect.open_catalog(instance.settings.catalog.url)
        lease = ended_lease(instance)
        names = (f"{lease.id}-{lease.token}-0", f"{lease.id}-{lease.token}-1", "77-abc-0")
        self.known, self.ended, self.foreign = (f"20260101T000000000000-{name}.h5" for name in names)
        self.day = self.path / "shards" / "2026-01-01"
        self.day.mkdir(parents=True)
        for name in (self.known, self.ended, self.foreign):
            (self.day / name).write_text(name)
        self.record(self.known, lease)

    def record(self, name: str, lease: Lease) -> None:
        row = {"name": name, "path": f"shards/2026-01-01/{name}", "rows": 1, "live_rows": 0, "bytes": 1}
        row |= {"checksum": "", "lease_id": lease.id, "engine": "x", "created_at": clock.utcnow()}
        connect.transact(self.catalog, lambda conn: conn.execute(sa.insert(schema.shards).values(**row)))

    def look(self, keep_days: float = 7.0, min_free: int = 0) -> list[str]:
        """One look; the shards that are in their place afterwards."""
        for _ in Leftovers(self.catalog, self.path, keep_days, min_free).look():
            pass
        return sorted(path.name for path in self.day.iterdir())

    def aside(self) -> list[str]:
        return sorted(path.name for path in (self.path / "unknown").iterdir())

    def told(self) -> dict[str, int] | None:
        with connect.reading(self.catalog) as conn:
            return values.get_value(conn, stats.UNKNOWN)  # type: ignore[no-any-return]


@pytest.fixture
def store(instance: Instance) -> Iterator[Store]:
    made = Store(instance)
    yield made
    made.catalog.dispose()


def test_a_sealed_shard_that_the_catalog_does_not_know_is_kept_aside(
    store: Store, instance: Instance
) -> None:
    unknown = sorted([store.ended, store.foreign])
    for _ in range(2):  # the second look tells of what the first has moved
        assert store.look() == [store.known]
        assert store.aside() == unknown
    assert [(store.path / "unknown" / name).read_text() for name in unknown] == unknown
    assert store.told() == {"files": 2, "bytes": sum(map(len, unknown))}
    assert instance.status()["unknown"] == store.told()
    assert "2 unknown, kept aside" in instance.run("status").stdout


def test_files_of_a_live_lease_are_left_alone(store: Store, instance: Instance) -> None:
    """A shard that is being written, and one that is sealed and not settled yet."""
    lease = connect.transact(
        store.catalog, leases.open_lease, host="h", pid=1, device="cpu", engine="x", lease_seconds=60
    )
    sealed, part = (f"20260101T000000000000-{lease.id}-{lease.token}-{end}" for end in ("0.h5", "1.h5.part"))
    (store.day / sealed).touch()
    (store.day / part).touch()
    assert store.look() == sorted([store.known, sealed, part])
    connect.transact(store.catalog, leases.end_lease, lease, "over", instance.settings.retry.policy)
    assert store.look() == [store.known]
    assert sealed in store.aside()
    assert part not in store.aside()


def test_a_shard_that_another_host_has_removed_meanwhile_costs_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.look()
    (store.path / "unknown" / store.ended).unlink()
    gone = ShardName.parse(store.ended)
    real = leftovers.shards_in
    monkeypatch.setattr(leftovers, "shards_in", lambda folder: [[gone, *some] for some in real(folder)])
    assert store.look() == [store.known]
    assert store.told() == {"files": 1, "bytes": len(store.foreign)}


def test_a_shard_comes_back_once_the_catalog_knows_it(store: Store, instance: Instance) -> None:
    store.look()
    store.record(store.foreign, Lease(77, "abc"))
    assert store.look() == sorted([store.known, store.foreign])
    assert store.aside() == [store.ended]
    assert (store.day / store.foreign).read_text() == store.foreign


def test_an_unknown_shard_is_removed_after_its_days_or_when_the_disk_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.setup("INFO")
    store.look()
    now = clock.utcnow()
    monkeypatch.setattr(clock, "utcnow", lambda: now + timedelta(days=6.9))
    store.look()
    assert len(store.aside()) == 2
    free = iter([10, 20])
    monkeypatch.setattr(leftovers, "free_bytes", lambda folder: next(free))
    store.look(min_free=15)
    assert len(store.aside()) == 1, "then there is room"
    assert capfd.readouterr().err.count("unknown_removed_early") == 1
    monkeypatch.setattr(leftovers, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(clock, "utcnow", lambda: now + timedelta(days=7.1))
    assert store.look() == [store.known]
    assert store.aside() == []
    assert store.told() == {"files": 0, "bytes": 0}


def test_the_mark_follows_the_catalog_and_is_never_set_back(
    make: Callable[..., tuple[Janitor, Channel, Channel]], store: Store
) -> None:
    janitor, _, _ = make()
    janitor.begin()
    janitor.step(1e6)
    assert read_mark(store.path).newest_shard == 1
    store.record("20260102T000000000000-1-a-0.h5", Lease(1, "a"))
    janitor.step(1e6 + 1)
    assert read_mark(store.path).newest_shard == 1, "not more often than the duty is renewed"
    janitor.step(2e6)
    assert read_mark(store.path).newest_shard == 2
    connect.transact(store.catalog, lambda conn: conn.execute(sa.delete(schema.shards)))
    janitor.step(3e6)
    assert read_mark(store.path).newest_shard == 2


def test_images_that_are_gone_for_long_are_purged_once_a_day_and_not_at_the_start(
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance
) -> None:
    janitor, _, _ = make(drain=False, purge_gone_days=30.0)
    draining, _, _ = make(drain=True, purge_gone_days=30.0)
    catalog = connect.open_catalog(instance.settings.catalog.url)

    def go(path: str) -> None:
        connect.transact(catalog, enqueue.enqueue, "/data", [FoundFile(path, 1, 1)])
        (row,) = [row for row in instance.rows() if row.path == path]
        connect.transact(catalog, enqueue.mark_gone, [row.id], "the file is gone")
        with catalog.begin() as conn:
            these = sa.update(schema.images).where(schema.images.c.id == row.id)
            conn.execute(these.values(updated_at=clock.utcnow() - timedelta(days=31)))

    def gone(now: float) -> list[str]:
        janitor.step(now)
        return [row.path for row in instance.rows()]

    start = clock.monotonic()
    janitor.begin()
    go("first.jpg")
    draining.step(start + 1e6)
    draining.close()
    assert gone(start + process.PURGE_FIRST_SECONDS - 60) == ["first.jpg"]
    assert gone(start + process.PURGE_FIRST_SECONDS + 60) == []
    go("second.jpg")
    assert gone(start + process.PURGE_EVERY_SECONDS) == ["second.jpg"]
    assert gone(start + process.PURGE_EVERY_SECONDS + process.PURGE_FIRST_SECONDS + 120) == []
    catalog.dispose()


def test_what_was_retired_in_the_future_is_mended(
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance
) -> None:
    janitor, _, _ = make()
    catalog = connect.open_catalog(instance.settings.catalog.url)
    retired = {"retired": clock.utcnow() + timedelta(days=3), "name": "x.h5", "path": "x.h5", "checksum": "x"}
    row = {**retired, "rows": 1, "live_rows": 0, "bytes": 1, "engine": "gist", "lease_id": 1}
    with catalog.begin() as conn:
        conn.execute(sa.insert(schema.shards).values(**row, created_at=clock.utcnow()))
    janitor.begin()
    janitor.step(1e6)
    with connect.reading(catalog) as conn:
        assert conn.scalar(sa.select(schema.shards.c.retired)) <= clock.utcnow()
    catalog.dispose()


def test_changes_are_numbered_in_time_and_at_the_end(
    make: Callable[..., tuple[Janitor, Channel, Channel]], instance: Instance
) -> None:
    janitor, _, _ = make()
    catalog = connect.open_catalog(instance.settings.catalog.url)

    def is_numbered() -> bool:
        with connect.reading(catalog) as conn:
            return feed.is_numbered(conn)

    janitor.begin()
    janitor.step(1e6)
    connect.transact(catalog, feed.note, [1])
    assert not is_numbered()
    janitor.step(1e6 + process.FEED_EVERY_SECONDS)
    assert is_numbered()
    connect.transact(catalog, feed.note, [1])
    janitor.close()
    assert is_numbered()
    catalog.dispose()
