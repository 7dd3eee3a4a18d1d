"""Several hosts on one catalog: one scans, the others watch; when it dies another scans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featd import clock
from featd.catalog import connect, hosts
from featd.ingest.hints import Trouble
from featd.ingest.process import Ingest
from featd.link import Channel, ChildLink, Heartbeat
from postgres import PostgreSQL
from running import Instance, kill_all, make_instance, wait_for

INGEST = """
import os, sys
from pathlib import Path
from featd import config, logs
from featd.ingest import process
from featd.link import Channel, ChildLink, Heartbeat

logs.setup()
link = ChildLink(
    "ingest", reports=Channel(), inbox=Channel(), heartbeat=Heartbeat(), wake_fd=os.eventfd(0), wake_fds={}
)
sys.exit(process.run(link, config.load(Path(sys.argv[1])), sys.argv[2], once=False))
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
        return self._log.read_text().count("scanned")

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
    assert instance.status()["ingest"]["scanned_by"] == "host-a"

    first.process.send_signal(signal.SIGKILL)
    killed = clock.monotonic()
    write(tmp_path / "images" / "second.jpg")
    (tmp_path / "images" / "first.jpg").unlink()
    wait_for(lambda: names(instance) == {"second.jpg"}, 30, "a scan of the second")
    print(f"\nthe other host scanned {clock.monotonic() - killed:.1f} s after the kill")
    assert instance.status()["ingest"]["scanned_by"] == "host-b"

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
def make(tmp_path: Path, database_url: str) -> Iterator[Callable[[str], Ingest]]:
    """An ingest in this process, by the name of its host; the root is watched."""
    write(tmp_path / "images" / "sub" / "first.jpg")
    instance = make_instance(
        tmp_path / "instance", tmp_path / "images", database_url, extra="rescan_seconds = 3600.0"
    )
    made: list[tuple[Ingest, Any]] = []

    def build(host: str) -> Ingest:
        parts = Channel(), Channel(), Heartbeat()
        link = ChildLink(
            "ingest",
            reports=parts[0],
            inbox=parts[1],
            heartbeat=parts[2],
            wake_fd=os.eventfd(0),
            wake_fds={},
        )
        made.append((Ingest(instance.settings, link, host), (*parts, link.wake_fd)))
        return made[-1][0]

    build.instance = instance  # type: ignore[attr-defined]
    yield build
    for ingest, (*parts, wake_fd) in made:
        ingest.close()
        for part in parts:
            part.close()
        os.close(wake_fd)


def turns(ingest: Ingest, seconds: float = 0.0) -> int:
    """Turns until nothing is due, `seconds` from now; returns how many scans of the root ended."""
    ended = 0
    while True:
        scans = ingest.step(clock.monotonic() + seconds)
        ended += len(scans)
        if not scans and ingest.seconds_to_next(clock.monotonic() + seconds) > 0.1:
            return ended


def test_a_host_that_does_not_scan_still_takes_what_arrives_there(
    make: Callable[[str], Ingest], tmp_path: Path
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


def test_lost_events_are_answered_by_a_scan_of_the_host_that_scans(make: Callable[[str], Ingest]) -> None:
    scans, watches = make("host-a"), make("host-b")
    assert turns(scans) == 1
    assert turns(watches) == 0
    watches._roots[0]._hints.trouble(Trouble.OVERFLOW)
    assert turns(watches, 10.0) == 0
    assert turns(watches, 20.0) == 0
    assert watches._roots[0].note is None  # the other was asked
    assert turns(scans, 30.0) == 1
    assert turns(scans, 50.0) == 0
    assert turns(watches, 50.0) == 0


def test_a_host_whose_duty_went_to_another_stops_scanning_and_begins_anew_when_it_comes_back(
    make: Callable[[str], Ingest],
) -> None:
    scans, watches = make("host-a"), make("host-b")
    assert turns(scans) == 1
    turns(watches)
    # It stood still for so long that the other took over.
    connect.transact(scans._catalog, lambda conn: hosts.leave_duty(conn, hosts.Duty.SCAN, "host-a"))
    assert turns(watches, 10.0) == 1
    scans._roots[0].scan_soon()
    assert turns(scans, 20.0) == 0
    watches.close()
    watches.close = lambda: None  # type: ignore[method-assign]
    assert turns(scans, 40.0) == 1
