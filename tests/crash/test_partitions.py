"""Hosts with a network of their own each, which is cut, lossy or slow: to the database, and so to each other."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from needs import missing
from networks import Network, need_networks
from photographs import write_photographs
from postgres import PostgreSQL
from running import Instance, check_promise, drain, kill_all, make_instance, wait_for

LEASE_SECONDS = 6
SOME = 40


@dataclass
class Hosts:
    """Hosts with one root and one store, on which featd runs."""

    instance: Instance
    networks: list[Network]
    images: Path
    arrived: int = 0

    def photographs(self) -> None:
        """Some more of them."""
        write_photographs(self.images / f"{self.arrived}", SOME)
        self.arrived += SOME

    def are_done(self) -> bool:
        return self.instance.count("done") == self.arrived

    def amid_work(self, what: Callable[[], None]) -> None:
        """Photographs arrive; when some of them are done, do `what`."""
        before = self.instance.count("done")
        self.photographs()
        wait_for(lambda: before + 3 < self.instance.count("done") < self.arrived, 60, "work")
        what()

    def workers(self) -> set[str]:
        """The hosts whose workers have leases."""
        return {lease["host"] for lease in self.instance.live_workers()}


@pytest.fixture
def hosts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Two of them, `a` and `b`, or as many as the test says."""
    names = getattr(request, "param", "ab")
    need_networks()
    networks = [Network(f"f{name}{os.getpid()}", f"10.213.{7 + at}") for at, name in enumerate(names)]
    server = PostgreSQL("10.213.0.0/16")
    processes: list[subprocess.Popen[str]] = []
    try:
        for network in networks:
            network.make()
        database = server.create()
        (tmp_path / "images").mkdir()
        of_tests = make_instance(
            tmp_path / "instance",
            tmp_path / "images",
            server.url(database),
            workers__devices=["cpu"],
            workers__lease_seconds=LEASE_SECONDS,
            workers__batch=2,
            store__shard_rows=4,
        )
        made = [
            replace(
                of_tests,
                host=name,
                network=network.name,
                env={"FEATD_CATALOG__URL": server.url_from(f"{network.subnet}.1", database)},
            )
            for name, network in zip(names, networks, strict=True)
        ]
        hosts = Hosts(of_tests, networks, tmp_path / "images")
        hosts.photographs()
        processes += [instance.start("run") for instance in made]
        wait_for(lambda: hosts.workers() == {*names}, 60, "a worker on each host")
        yield hosts
        for process in processes:
            process.terminate()
        assert {process.wait(60) for process in processes} == {0}
        drain(of_tests)  # what the workers left unrecorded is put aside
        assert check_promise(of_tests) == {"done": hosts.arrived}
    finally:
        for process in processes:
            kill_all(process)
        for network in networks:
            network.mend()
            network.remove()
        server.close()


def test_the_other_host_does_the_images_of_one_that_is_cut_off(hosts: Hosts) -> None:
    a, b = hosts.networks
    hosts.amid_work(a.cut)
    wait_for(hosts.are_done, 90, "the end of the work, by the other host")
    wait_for(lambda: hosts.workers() == {"b"}, 60, "the end of the lease of the host that is cut off")
    hosts.photographs()
    wait_for(hosts.are_done, 60, "more work of the other host")
    a.mend()
    wait_for(lambda: hosts.workers() == {"a", "b"}, 90, "the host to come back")
    hosts.amid_work(b.cut_replies)
    wait_for(hosts.are_done, 90, "the end of the work, by the first host")
    b.mend()
    wait_for(lambda: hosts.workers() == {"a", "b"}, 90, "the second host to come back")


@pytest.mark.long
def test_hosts_that_are_both_cut_off_go_on_later(hosts: Hosts) -> None:
    a, b = hosts.networks

    def cut() -> None:
        a.cut()
        b.cut_replies()

    hosts.amid_work(cut)
    log = hosts.instance.folder / "stderr"
    wait_for(lambda: log.read_text().count("lease_expiring") == 2, 60, "the end of both workers")
    done = hosts.instance.count("done")
    hosts.photographs()
    a.mend()
    b.mend()
    wait_for(hosts.are_done, 120, "the end of the work")
    assert done < hosts.arrived - SOME


@pytest.mark.long
@pytest.mark.parametrize("hosts", ["abc"], indirect=True)
def test_three_hosts_of_which_one_loses_packets_one_is_slow_and_one_is_cut_off_and_on(hosts: Hosts) -> None:
    if shutil.which("tc") is None or shutil.which("iptables") is None:
        missing("tc and iptables (Debian: iproute2, iptables)")
    lossy, slow, cut = hosts.networks
    lossy.lose(0.2)
    slow.slow_down("128kbit")
    for _ in range(2):
        hosts.amid_work(cut.cut)
        wait_for(hosts.are_done, 120, "the end of the work, over bad networks")
        cut.mend()
    wait_for(lambda: hosts.workers() == {"a", "b", "c"}, 120, "all hosts at work again")
