"""A child that dies a hundred times costs its supervisor nothing: no process, descriptor, memory map or lock."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from featd.processes.child import ChildSpec
from featd.processes.link import ChildLink
from featd.processes.records import LeaseOpened, Ready
from featd.start.seat import take_lock
from featd.states import Lease
from featd.supervisor.supervisor import Supervisor
from photographs import write_photographs
from running import kill_all, make_instance, wait_for

RESTARTS = 100
HOW = ("exit", "abort", "kill", "hang")


def dies(link: ChildLink, _: object) -> int:
    """It makes what workers make (pipes, memory, a grandchild), and dies each time in another way."""
    link.report(LeaseOpened(Lease(1, "x")))
    memory = os.memfd_create("pixels")
    os.ftruncate(memory, 1 << 16)
    if os.fork() == 0:
        os.close(2)
        os._exit(0)
    link.report(Ready())
    match HOW[os.getpid() // 2 % len(HOW)]:
        case "exit":
            return 1
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    link.beat(0.01)
    while True:
        signal.pause()


def janitor(link: ChildLink, _: object) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    link.report(Ready())
    while True:
        list(link.inbox.receive())
        signal.sigtimedwait([signal.SIGUSR1], 0.05)


def holdings() -> Counter[str]:
    """What this process holds."""
    found = Counter(descriptors=len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    found["maps"] = sum(
        "dev/zero" in line or "memfd" in line for line in Path("/proc/self/maps").read_text().splitlines()
    )
    found["children"] = len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    found["segments"] = len(os.listdir("/dev/shm"))  # noqa: PTH208
    found["locks"] = sum(f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines())
    return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    lock = take_lock(tmp_path / "host.lock")
    specs = [ChildSpec("janitor", janitor, last=True), ChildSpec("worker", dies, after=("janitor",))]
    one = Supervisor(
        specs, run_folder=tmp_path, stop_seconds=5.0, deaths_to="janitor", close_in_children=[lock]
    )
    with one:
        yield one
        one.stop(0, time.monotonic())
        wait_for(lambda: one.step(time.monotonic()) is not None, 15)
    os.close(lock)


@pytest.mark.serial  # counts what others have in /dev/shm, too
def test_a_hundred_restarts_leave_nothing(supervisor: Supervisor) -> None:
    worker = supervisor.children["worker"]
    deaths = 0
    held: list[Counter[str]] = []

    def turn() -> bool:
        nonlocal deaths
        supervisor.step(time.monotonic())
        if worker.pid is None and worker.deaths:
            deaths += worker.deaths
            worker.deaths, worker.start_at = 0, 0.0
            held.append(holdings())
        supervisor.wait(0.01)
        return deaths >= RESTARTS

    wait_for(turn, 120, "a hundred deaths")
    assert held[-1] == held[len(HOW)], (held[len(HOW)], held[-1])


def test_a_janitor_that_is_started_again_leaves_the_workers_at_work(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 4)
    instance = make_instance(tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"])
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") == 4, 60, "the first images")
        (before,) = instance.live_workers()
        state = next((instance.settings.store.path / "run").glob("*/supervisor.json"))
        (janitor,) = (c for c in json.loads(state.read_text())["children"] if c["name"] == "janitor")
        os.kill(janitor["pid"], signal.SIGKILL)
        log = instance.folder / "stderr"
        wait_for(lambda: log.read_text().count('child="janitor"') >= 3, 60, "another janitor")
        write_photographs(tmp_path / "images", 6)
        assert instance.run("scan").returncode == 0
        wait_for(lambda: instance.count("done") == 6, 60, "more images")
        (after,) = instance.live_workers()
        assert (after["id"], after["pid"]) == (before["id"], before["pid"])
        assert list((instance.settings.store.path / "run").glob("*/*.hands"))
    finally:
        kill_all(process)
