"""What systemd is told, seen at the other end of its socket."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featd.processes.child import ChildSpec
from featd.processes.link import ChildLink
from featd.processes.records import Ready, StatusLine
from featd.supervisor.supervisor import Supervisor
from featd.supervisor.systemd import EXTEND_SECONDS, Notifier
from running import wait_for


class Listener:
    """The end of the socket that systemd has."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        """Everything that was said so far, one assignment each."""
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def listener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Listener]:
    name = f"featd-{os.getpid()}-{request.param}"
    address = str(tmp_path / "n") if request.param == "file" else f"@{name}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    one = Listener("\0" + name if request.param == "abstract" else address)
    yield one
    one.close()


def test_messages_are_those_of_sd_notify(listener: Listener) -> None:
    notifier = Notifier()
    notifier.still_starting(10.0)
    notifier.still_starting(11.0)
    notifier.ready()
    notifier.status("two\nlines", 0.0)
    notifier.reloading()
    notifier.stopping()
    extend, ready, status, reloading, stamp, stopping = listener.hear()
    assert extend == f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1e6:.0f}"
    assert (ready, status, reloading, stopping) == (
        "READY=1",
        "STATUS=two lines",
        "RELOADING=1",
        "STOPPING=1",
    )
    assert abs(int(stamp.removeprefix("MONOTONIC_USEC=")) / 1e6 - time.monotonic()) < 60


def test_a_status_is_said_when_it_changes_and_not_too_often(listener: Listener) -> None:
    notifier = Notifier()
    for now, text in ((10.0, "a"), (10.1, "a"), (10.2, "b"), (11.1, "b"), (13.0, "b")):
        notifier.status(text, now)
    assert listener.hear() == ["STATUS=a", "STATUS=b"]


def test_the_watchdog_is_petted_four_times_an_interval(listener: Listener) -> None:
    notifier = Notifier()
    for now in range(1000, 1100):
        notifier.alive(now / 10)
    assert listener.hear() == ["WATCHDOG=1"] * 10


def test_children_cannot_speak_for_the_service(listener: Listener) -> None:
    Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_nobody_listens_and_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_a_watchdog_that_is_not_ours_is_left_alone(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Notifier().alive(1.0)
    assert listener.hear() == []


def works(link: ChildLink, _: object) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    link.report(Ready())
    link.report(StatusLine("3 images done"))
    while True:
        signal.pause()


def fails(link: ChildLink, _: object) -> int:
    return 1


def run_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    def turn() -> bool:
        supervisor.step(time.monotonic())
        supervisor.wait(0.02)
        return condition()

    wait_for(turn, 15)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made = []

    def build(*specs: ChildSpec) -> Supervisor:
        supervisor = Supervisor(specs, run_folder=tmp_path, stop_seconds=5.0, notifier=Notifier())
        supervisor.__enter__()
        made.append(supervisor)
        return supervisor

    yield build
    for supervisor in made:
        supervisor.stop(0, time.monotonic())
        wait_for(lambda one=supervisor: one.step(time.monotonic()) is not None, 15)
        supervisor.__exit__()


def test_a_supervisor_is_ready_with_its_first_worker(
    listener: Listener, make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = make(
        ChildSpec("janitor", works), ChildSpec("worker", works, after=("janitor",), essential=True)
    )
    run_until(supervisor, lambda: supervisor.children["janitor"].ready)
    assert "READY=1" not in listener.hear() or supervisor.children["worker"].ready
    run_until(supervisor, lambda: "STATUS=3 images done" in listener.hear())
    heard = listener.hear()
    assert heard[0].startswith("EXTEND_TIMEOUT_USEC=")
    assert heard.index("READY=1") < heard.index("STATUS=3 images done")
    assert heard.count("READY=1") == 1
    assert "WATCHDOG=1" in heard
    run_until(supervisor, lambda: '"ready"' in (tmp_path / "supervisor.json").read_text())
    supervisor.stop(0, time.monotonic())
    assert listener.hear()[-1] == "STOPPING=1"


def test_workers_that_cannot_start_are_told_and_not_waited_for_without_end(
    listener: Listener, make: Callable[..., Supervisor]
) -> None:
    supervisor = make(ChildSpec("worker", fails, essential=True))
    child = supervisor.children["worker"]

    def failed_often() -> bool:
        child.start_at = 0.0
        return child.boot_failures >= 3

    run_until(supervisor, failed_often)
    child.start_at = time.monotonic() + 10_000
    before = listener.hear().count("EXTEND_TIMEOUT_USEC=60000000")
    supervisor.step(time.monotonic() + 1000)
    assert listener.hear().count("EXTEND_TIMEOUT_USEC=60000000") == before
    assert "READY=1" not in listener.hear()
    assert any("worker died and will be started again (exit code 1)" in said for said in listener.hear())


def test_a_child_that_hangs_unattended_stops_the_watchdog(
    listener: Listener, make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    supervisor = make(ChildSpec("worker", works, essential=True))
    child = supervisor.children["worker"]
    run_until(supervisor, lambda: child.ready)
    monkeypatch.setattr(Supervisor, "abort_hung", lambda self, now: None)  # a bug in the supervisor
    child.heartbeat.expect(-1.0)
    before = listener.hear().count("WATCHDOG=1")
    later = time.monotonic() + 0.3
    run_until(supervisor, lambda: time.monotonic() > later)
    assert listener.hear().count("WATCHDOG=1") == before
    child.heartbeat.clear()
    run_until(supervisor, lambda: listener.hear().count("WATCHDOG=1") > before)
