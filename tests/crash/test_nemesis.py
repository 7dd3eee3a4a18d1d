"""A nemesis: photographs keep arriving while faults of every kind happen, several at a time. When the faults stop,
catalog, store and disk agree before long, and no image has failed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featd.errors import EXIT_ERROR, EXIT_OUT_OF_REACH
from life import GOOD_DEEDS, Life, agrees
from postgres import PostgreSQL
from running import (
    Instance,
    check_promise,
    kill_all,
    live_vectors,
    make_instance,
    session_of,
    stop_outside_a_transaction,
    wait_for,
)

LEASE_SECONDS = 3
DRAIN_SECONDS = 180
"""More than the longest back-off of a worker that has died often, 60 s."""


class Nemesis:
    """Runs featd on its hosts and makes faults. A fault is a generator: it does harm, says what it did and, when it is
    resumed some seconds later, mends it. One that is not possible now yields nothing, and another is tried."""

    def __init__(
        self, hosts: list[Instance], life: Life, dice: random.Random, postgres: PostgreSQL | None
    ) -> None:
        self.hosts = hosts
        self.life = life
        self.dice = dice
        self.postgres = postgres
        self.processes = [host.start("run") for host in hosts]
        self.began = self.due = time.monotonic()
        self.under_way: dict[str, tuple[float, Iterator[str]]] = {}
        self.faults = ["kill_featd", "fill_store", "hide_root", "burst", "kill_worker", "stop_worker"]
        self.faults += ["kill_worker", "stop_worker"]  # twice as likely, for often there is no worker
        self.faults.append("restart_postgresql" if postgres else "lock_sqlite")

    def step(self) -> None:
        """One turn: mend what has lasted long enough, and begin the next fault if it is due."""
        self.keep_running()
        now = time.monotonic()
        for name in [name for name, (end, _) in self.under_way.items() if now > end]:
            self.mend(name)
        if now > self.due:
            name = self.dice.choice([name for name in self.faults if name not in self.under_way])
            fault = getattr(self, name)()
            if harm := next(fault, None):
                self.say(harm)
                # Some last for less than a lease, others for more than two.
                self.under_way[name] = (now + self.dice.uniform(0.5, 2.5) * LEASE_SECONDS, fault)
                self.due = now + self.dice.uniform(1, 5)

    def mend(self, name: str) -> None:
        next(self.under_way.pop(name)[1], None)

    def mend_all(self) -> None:
        for name in list(self.under_way):
            self.mend(name)
        self.say("no more faults")

    def keep_running(self) -> None:
        """Start featd again where it has ended, as systemd does."""
        for at, process in enumerate(self.processes):
            if process.poll() is not None:
                self.say(f"featd {process.pid} ended with {process.returncode}")
                assert process.returncode in (EXIT_ERROR, EXIT_OUT_OF_REACH, -signal.SIGKILL)
                self.processes[at] = self.hosts[at].start("run")

    def is_drained(self) -> bool:
        self.keep_running()
        return agrees(self.hosts[0], self.life)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {what}")

    # The faults

    def kill_worker(self) -> Iterator[str]:
        if pid := self.worker():
            os.kill(pid, signal.SIGKILL)
            yield f"killed worker {pid}"

    def stop_worker(self) -> Iterator[str]:
        # A lock that is held by this test would look as if the worker held it.
        pid = None if "lock_sqlite" in self.under_way else self.worker()
        url = self.hosts[0].settings.catalog.url
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ends by itself just now
            if pid and any(stop_outside_a_transaction(pid, url) for _ in range(10)):
                yield f"stopped worker {pid}"
                os.kill(pid, signal.SIGCONT)

    def kill_featd(self) -> Iterator[str]:
        process = self.dice.choice(self.processes)
        if self.dice.random() < 0.5:
            kill_all(process)
        else:
            process.kill()
            wait_for(lambda: not session_of(process), 10, "the death of the children with their supervisor")
        yield f"killed featd {process.pid}"

    def fill_store(self) -> Iterator[str]:
        ballast = self.hosts[0].settings.store.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield f"filled the store with {ballast.stat().st_size:,} bytes"
        ballast.unlink()

    def hide_root(self) -> Iterator[str]:
        hidden = self.life.folder.rename(self.life.folder.with_name("hidden"))
        yield "took the root away"
        hidden.rename(self.life.folder)

    def burst(self) -> Iterator[str]:
        if self.life.folder.exists():
            folder = f"burst-{self.life.serial}"
            for _ in range(200):
                self.life.add(folder)
            yield "a burst of 200 images"

    def lock_sqlite(self) -> Iterator[str]:
        file = self.hosts[0].settings.catalog.url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield "locked the catalog"

    def restart_postgresql(self) -> Iterator[str]:
        assert self.postgres is not None
        self.postgres.restart_at_once()
        yield "restarted PostgreSQL"

    def worker(self) -> int | None:
        """The pid of a live worker of ours."""
        alive = {pid for process in self.processes for pid in session_of(process)}
        pids = [worker["pid"] for worker in self.hosts[0].live_workers() if worker["pid"] in alive]
        return self.dice.choice(pids) if pids else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "store"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


LONG = (pytest.mark.long, pytest.mark.timeout(3600))


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        (220, 15.0),  # nearly every kind of fault within this time
        pytest.param(1, 1800.0, marks=LONG),
    ],
)
def test_faults_of_every_kind(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    store: Path,
    database_url: str,
    seed: int,
    seconds: float,
) -> None:
    life = Life(tmp_path / "images", random.Random(seed), GOOD_DEEDS)
    instance = make_instance(
        tmp_path / "instance",
        life.folder,
        database_url,
        store__path=str(store),
        store__shard_rows=16,
        workers__devices=["cpu", "cpu"],
        workers__batch=4,
        workers__decoders=1,
        workers__lease_seconds=LEASE_SECONDS,
        extra="rescan_seconds = 5.0",
    )
    hosts, postgres = [instance], None
    if database_url.startswith("postgresql"):
        hosts = [replace(instance, host=name) for name in ("host-a", "host-b")]
        postgres = request.getfixturevalue("postgres")
    print(f"seed {seed}")
    nemesis = Nemesis(hosts, life, random.Random(seed), postgres)
    try:
        wait_for(instance.live_workers, 90, "a worker")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            nemesis.step()
            if life.folder.exists():
                life.deed()
            time.sleep(life.dice.uniform(0.0, 0.2))  # life has its own pace
        nemesis.mend_all()
        # The longer the faults last, the more is left to do: hardly any work is done meanwhile.
        wait_for(nemesis.is_drained, DRAIN_SECONDS + seconds / 3, "agreement of catalog and disk")
        nemesis.say("drained")
        # One that was started a moment ago does not hear signals before it has children.
        wait_for(lambda: all(len(session_of(one)) > 3 for one in nemesis.processes), 90, "every host at work")
        for process in nemesis.processes:
            process.terminate()
        assert [process.wait(60) for process in nemesis.processes] == [0] * len(hosts)
    finally:
        for process in nemesis.processes:
            kill_all(process)
    assert not instance.live_workers(), "a lease is open, and no worker lives"
    assert instance.run("run", "--drain").returncode == 0  # its janitor looks for leftovers
    states = check_promise(instance)  # also that no two rows name one vector, and that no file is left over
    print(dict(states), dict(life.deeds))
    assert set(states) <= {"done", "gone"}
    assert all(np.isfinite(vector).all() for vector in live_vectors(instance).values())
