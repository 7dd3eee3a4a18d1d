"""Several hosts on one catalog: of each root one scans, the others watch; when it dies another scans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featd import clock
from featd.catalog import connect, hosts
from featd.errors import CatalogUnavailableError
from featd.ingest import process
from featd.ingest.hints import Trouble
from featd.ingest.process import Ingest
from featd.ingest.scan import Scan
from featd.processes.link import Channel, ChildLink, Heartbeat
from featd.roots import RootState
from postgres import PostgreSQL
from running import Instance, kill_all, make_instance, wait_for

INGEST = """
import os, sys
from pathlib import Path
from featd import config, daemon, logs
from featd.ingest import process
from featd.processes.link import Channel, ChildLink, Heartbeat

logs.setup()
link = ChildLink(
    "ingest", reports=Channel(), inbox=Channel(), heartbeat=Heartbeat(), wake_fd=os.eventfd(0), wake_fds={}
)
now = daemon.configured(config.load(Path(sys.argv[1])), sys.argv[2], drain=False)
sys.exit(process.run(link, next(spec.plan for spec in now.specs if spec.name == "ingest")))
"""


class Host:
    """An ingest process that goes by the name of a host."""

    def __init__(self, instance: Instance, name: str) -> None:
        self.name = name
        self._log = instance.folder / f"{name}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", INGEST, str(instance.config), name], stderr=log, start_new_session=True
            )

    def scans(self) -> int:
        """How many scans of a whole root it has ended."""
        return self._log.read_text().count("scan_finished")

    def said(self, text: str) -> bool:
        return text in self._log.read_text()


@pytest.fixture
def start(postgres: PostgreSQL, tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Starts the ingest of a host by its name; all have one catalog and one root, which is not watched."""
    write(tmp_path / "images" / "first.jpg")
    database = postgres.create()
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        postgres.url(database),
        workers__lease_seconds=3.0,
        extra="rescan_seconds = 1.0\nwatch = false",
    )
    started: list[Host] = []

    def begin(name: str) -> Host:
        started.append(Host(instance, name))
        return started[-1]

    begin.instance = instance  # type: ignore[attr-defined]
    yield begin
    for host in started:
        kill_all(host.process)
    postgres.drop(database)


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (1e9, 1e9))


def names(instance: Instance) -> set[str]:
    return {row.path for row in instance.rows() if row.state != "gone"}


def test_one_host_scans_and_another_takes_over_when_it_dies(
    start: Callable[[str], Host], tmp_path: Path
) -> None:
    instance: Instance = start.instance  # type: ignore[attr-defined]
    first = start("host-a")
    wait_for(lambda: first.scans() >= 2, 30, "the first host's scans")
    second = start("host-b")
    wait_for(lambda: second.said("another host scans"), 30, "the second to stand by")
    before = first.scans()
    wait_for(lambda: first.scans() >= before + 3, 30, "more scans of the first")
    assert second.scans() == 0
    assert instance.status()["ingest"]["scanned_by"] == {str(tmp_path / "images"): "host-a"}

    first.process.send_signal(signal.SIGKILL)
    killed = clock.monotonic()
    write(tmp_path / "images" / "second.jpg")
    (tmp_path / "images" / "first.jpg").unlink()
    wait_for(lambda: names(instance) == {"second.jpg"}, 30, "a scan of the second")
    print(f"\nthe other host scanned {clock.monotonic() - killed:.1f} s after the kill")
    assert instance.status()["ingest"]["scanned_by"] == {str(tmp_path / "images"): "host-b"}

    third = start("host-a")
    wait_for(lambda: third.said("another host scans"), 30, "the first, back, to stand by")
    assert third.scans() == 0
    second.process.send_signal(signal.SIGTERM)
    stopped = clock.monotonic()
    wait_for(lambda: third.scans() >= 1, 30, "a scan of the first")
    # Left at its end, so that nobody waits for it to expire.
    assert clock.monotonic() - stopped < 3.0
    assert second.process.wait(30) == 0


def test_a_host_that_holds_it_scans_at_once_when_it_comes_back(start: Callable[[str], Host]) -> None:
    first = start("host-a")
    wait_for(lambda: first.scans() >= 1, 30, "a scan")
    kill_all(first.process)
    again = start("host-a")
    wait_for(lambda: again.scans() >= 1, 30, "a scan")
    assert not again.said("another host scans")


@pytest.fixture
def make(tmp_path: Path, database_url: str) -> Iterator[Callable[..., Ingest]]:
    """An ingest in this process, by the name of its host; the root is watched."""
    write(tmp_path / "images" / "sub" / "first.jpg")
    instance = make_instance(
        tmp_path / "instance", tmp_path / "images", database_url, extra="rescan_seconds = 3600.0"
    )
    made: list[tuple[Ingest, Any]] = []

    def build(host: str, *, once: bool = False, watch: bool = True, also: Sequence[Path] = ()) -> Ingest:
        parts = Channel(), Channel(), Heartbeat()
        link = ChildLink(
            "ingest",
            reports=parts[0],
            inbox=parts[1],
            heartbeat=parts[2],
            wake_fd=os.eventfd(0),
            wake_fds={},
        )
        plan = instance.plan("ingest", host, drain=once)
        roots = tuple(root.model_copy(update={"watch": watch}) for root in plan.roots)
        roots += tuple(roots[0].model_copy(update={"path": path}) for path in also)
        made.append((Ingest(replace(plan, roots=roots), link), (*parts, link.wake_fd)))
        return made[-1][0]

    build.instance = instance  # type: ignore[attr-defined]
    yield build
    for ingest, (*parts, wake_fd) in made:
        close(ingest)
        for part in parts:
            part.close()
        os.close(wake_fd)


def close(ingest: Ingest) -> None:
    """Once, whoever comes first."""
    ingest.close()
    ingest.close = lambda: None  # type: ignore[method-assign]


def turns(ingest: Ingest, seconds: float = 0.0) -> int:
    """Turns until nothing is due, `seconds` from now; returns how many scans of the root ended."""
    ended = 0
    while True:
        scans = ingest.step(clock.monotonic() + seconds)
        ended += len(scans)
        if not scans and ingest.seconds_to_next(clock.monotonic() + seconds) > 0.1:
            return ended


def test_a_host_that_does_not_scan_still_takes_what_arrives_there(
    make: Callable[..., Ingest], tmp_path: Path
) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    scans, watches = make("host-a"), make("host-b")
    assert turns(scans) == 1
    assert turns(watches) == 0
    write(tmp_path / "images" / "sub" / "arrived.jpg")
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "moved.jpg")
    (tmp_path / "outside").rename(tmp_path / "images" / "folder")
    (tmp_path / "images" / "sub" / "first.jpg").unlink()
    wanted = {"sub/arrived.jpg", "folder/moved.jpg"}
    wait_for(lambda: turns(watches) == 0 and names(instance) == wanted, 20, "what arrived")
    assert instance.status()["ingest"]["watching"] == 2


def test_a_root_that_does_not_answer_blocks_no_other_root(
    make: Callable[..., Ingest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead mount blocks whoever looks at it; what is written elsewhere is processed, and status says why."""
    instance: Instance = make.instance  # type: ignore[attr-defined]
    (tmp_path / "dead").mkdir()
    write(tmp_path / "dead" / "late.jpg")
    monkeypatch.setattr(process, "TURN_SECONDS", 0.2)
    ingest = make("host-a", also=[tmp_path / "dead"])
    dead = ingest.roots[1]
    go_on, step = threading.Event(), dead.step

    def blocks(now: float) -> list[Scan]:
        go_on.wait(30)
        return step(now)

    monkeypatch.setattr(dead, "step", blocks)
    try:
        wait_for(lambda: turns(ingest) == 0 and names(instance) == {"sub/first.jpg"}, 20, "the living root")
        assert "does not answer" in instance.status()["ingest"]["notes"][dead.name]
    finally:
        go_on.set()
    wait_for(lambda: ingest.step(clock.monotonic()) == [] and "late.jpg" in names(instance), 20, "the other")
    wait_for(lambda: turns(ingest) == 0 and not instance.status()["ingest"]["notes"], 20, "no note")


def lose_events(ingest: Ingest) -> None:
    ingest.roots[0].hints.trouble(Trouble.OVERFLOW)


def give_away(instance: Instance, host: str) -> None:
    """Free the duties of a host, as if it had stood still for so long, without its noticing."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    duties = [hosts.scan_of(str(root.path)) for root in instance.settings.roots]
    connect.transact(catalog, hosts.leave_duties, duties, host)
    catalog.dispose()


def test_lost_events_are_answered_by_a_scan_of_the_host_that_scans(make: Callable[..., Ingest]) -> None:
    scans, watches = make("host-a"), make("host-b")
    assert turns(scans) == 1
    assert turns(watches) == 0
    assert turns(watches, 10.0) == 0
    assert turns(scans, 20.0) == 1  # for what was written there while featd was down there
    assert turns(watches, 30.0) == 0
    assert turns(scans, 40.0) == 0
    lose_events(watches)
    assert turns(watches, 50.0) == 0
    assert turns(watches, 60.0) == 0
    assert watches.roots[0].note is None  # the other was asked
    assert turns(scans, 70.0) == 1
    assert turns(scans, 90.0) == 0
    assert turns(watches, 90.0) == 0


def test_a_host_that_does_not_watch_asks_for_nothing(make: Callable[..., Ingest]) -> None:
    scans, other = make("host-a"), make("host-b", watch=False)
    assert turns(scans) == 1
    for seconds in (0.0, 10.0, 20.0):
        assert turns(other, seconds) == 0
    assert turns(scans, 30.0) == 0


@pytest.mark.parametrize("under_way", [False, True])
def test_a_doubt_is_not_lost_when_the_duty_moves(
    make: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    first, second = make("host-a"), make("host-b")
    assert turns(first) == 1
    turns(second)
    turns(second, 10.0)
    lose_events(first)
    if under_way:  # a scan of more than one step has begun
        monkeypatch.setattr("featd.ingest.compare.SLICE_SECONDS", 0.0)
        assert first.step(clock.monotonic() + 15.0) == []
    give_away(make.instance, "host-a")  # type: ignore[attr-defined]
    assert turns(second, 20.0) == 1
    assert turns(first, 30.0) == 0
    assert turns(first, 36.0) == 0
    assert turns(second, 42.0) == 1


def test_a_lost_answer_to_a_commit_loses_no_ask(
    make: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, watches = make("host-a"), make("host-b")
    turns(scans)
    turns(watches)
    turns(watches, 10.0)
    turns(scans, 20.0)
    lose_events(watches)
    turns(watches, 25.0)  # hears of it, and asks at its next renewal
    real = connect.transact

    def commit_in_vain(engine: Any, work: Any, *given: Any) -> Any:
        real(engine, work, *given)
        raise connect.CommitUnknownError("the line was cut")

    for ingest, seconds in ((watches, 30.0), (scans, 40.0)):
        monkeypatch.setattr(connect, "transact", commit_in_vain)
        with pytest.raises(connect.CommitUnknownError):
            ingest.step(clock.monotonic() + seconds)
        monkeypatch.setattr(connect, "transact", real)
    assert turns(scans, 50.0) == 1


def test_a_host_whose_duty_went_to_another_stops_scanning_and_begins_anew_when_it_comes_back(
    make: Callable[..., Ingest],
) -> None:
    scans, watches = make("host-a"), make("host-b")
    assert turns(scans) == 1
    turns(watches)
    give_away(make.instance, "host-a")  # type: ignore[attr-defined]
    assert turns(watches, 10.0) == 1
    assert turns(scans, 20.0) == 0
    close(watches)
    assert turns(scans, 40.0) == 1


def test_a_root_that_is_offline_here_is_scanned_by_another_host(
    make: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch
) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    first, second = make("host-a"), make("host-b")
    assert turns(first) == 1
    assert turns(second) == 0
    state = RootState.EMPTY  # as after an umount, on the first host
    monkeypatch.setattr("featd.ingest.root.root_state", lambda path: state)
    assert turns(first, 10.0) == 0
    assert turns(first, 16.0) == 0
    assert scanned_by(instance) == []
    state = RootState.ONLINE
    assert turns(second, 22.0) == 1
    assert scanned_by(instance) == ["host-b"]
    # The root is back on the first host, and the second scans it by now.
    assert turns(first, 30.0) == 0
    assert scanned_by(instance) == ["host-b"]


def test_each_root_has_its_own_host(tmp_path: Path, make: Callable[..., Ingest]) -> None:
    """One is offline on the first host: the second scans it, and only it."""
    instance: Instance = make.instance  # type: ignore[attr-defined]
    with instance.config.open("a") as config:
        config.write(f'\n[[roots]]\npath = "{tmp_path / "other"}"\nrescan_seconds = 3600.0\n')
    first = make("host-a")
    assert turns(first) == 1
    write(tmp_path / "other" / "there.jpg")
    second = make("host-b")
    assert turns(second) == 1
    assert turns(first, 10.0) == 0
    assert instance.status()["ingest"]["scanned_by"] == {
        str(tmp_path / "images"): "host-a",
        str(tmp_path / "other"): "host-b",
    }
    assert names(instance) == {"sub/first.jpg", "there.jpg"}


def test_a_scan_once_needs_no_duty(make: Callable[..., Ingest]) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    assert turns(make("host-a")) == 1
    once = make("host-b", once=True)
    wait_for(lambda: once.step(clock.monotonic()) and once.all_scanned, 20, "its scan")
    close(once)
    assert scanned_by(instance) == ["host-a"]


def test_a_host_that_stopped_counts_as_live_no_more(make: Callable[..., Ingest]) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    first, second = make("host-a"), make("host-b")
    turns(first)
    turns(second)
    assert {host for host, found in reports(instance).items() if found.live} == {"host-a", "host-b"}
    close(first)
    assert {host for host, found in reports(instance).items() if found.live} == {"host-b"}
    assert scanned_by(instance) == []


def test_counts_go_on_behind_a_process_that_never_reached_the_catalog(make: Callable[..., Ingest]) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    first = make("host-a")
    turns(first)
    lose_events(first)
    turns(first, 10.0)
    close(first)
    close(make("host-a"))
    assert reports(instance)["host-a"].report["overflows"] == 1
    third = make("host-a")
    lose_events(third)
    turns(third)
    turns(third, 10.0)
    assert reports(instance)["host-a"].report["overflows"] == 2


def test_what_a_transaction_that_failed_would_have_told_is_told_by_the_next(
    make: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch
) -> None:
    instance: Instance = make.instance  # type: ignore[attr-defined]
    first = make("host-a")
    turns(first)
    lose_events(first)
    real = hosts.report_ingest

    def fail(*given: Any) -> None:
        real(*given)
        raise CatalogUnavailableError("out of reach")

    monkeypatch.setattr(hosts, "report_ingest", fail)
    for seconds in (2.0, 10.0):  # a change, and a renewal
        with pytest.raises(CatalogUnavailableError):
            first.step(clock.monotonic() + seconds)
    assert reports(instance)["host-a"].report["overflows"] == 0
    monkeypatch.setattr(hosts, "report_ingest", real)
    assert first.seconds_to_next(clock.monotonic() + 10.0) == 0.0
    turns(first, 12.0)
    assert reports(instance)["host-a"].report["overflows"] == 1


def reports(instance: Instance) -> dict[str, hosts.IngestReport]:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with connect.reading(catalog) as conn:
        found = hosts.ingest_reports(conn)
    catalog.dispose()
    return found


def scanned_by(instance: Instance) -> list[str]:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with connect.reading(catalog) as conn:
        found = hosts.duty_holders(conn)
    catalog.dispose()
    return sorted(found.values())
