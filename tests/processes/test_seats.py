"""Seats: several supervisors on one host, each with its own name, lock and leases; and one that moves."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect, schema
from needs import missing
from photographs import write_photographs
from running import Instance, check_no_vector_twice, check_promise, drain, kill_all, make_instance, wait_for

PHOTOGRAPHS = 80
SOON = 30.0
"""Less than a lease lasts: what is free by then did not wait for its end."""


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    """It takes some seconds for its images, which are not in its root yet."""
    write_photographs(tmp_path / "arriving", PHOTOGRAPHS)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=5,
    )


def arrive(instance: Instance) -> None:
    """All photographs at once."""
    root = instance.settings.roots[0].path
    (root.parent / "arriving").rename(root / "album")


def leases_of(instance: Instance, seat: str) -> dict[int, int]:
    """The leases of a seat's workers that have not ended, and how many images each has done."""
    return {one["id"]: one["done"] for one in instance.live_workers() if one["host"] == seat}


def done_by(instance: Instance) -> dict[str, int]:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with connect.reading(catalog) as conn:
        columns = schema.leases.c.host, sa.func.sum(schema.leases.c.done)
        found = {seat: int(done) for seat, done in conn.execute(sa.select(*columns).group_by(columns[0]))}
    catalog.dispose()
    return found


def killed_amid_work(instance: Instance, process: subprocess.Popen[str], seat: str) -> set[int]:
    """Kill all of a seat while it has images; returns its leases, which are open."""
    wait_for(lambda: sum(leases_of(instance, seat).values()) > 4, 60, "work")
    wait_for(lambda: instance.count("claimed") > 0, 60, "images in hand")
    kill_all(process)
    left = set(leases_of(instance, seat))
    assert left
    return left


def test_two_seats_of_one_host_share_the_work_and_one_that_is_killed_comes_back_as_itself_elsewhere(
    instance: Instance, started: list[subprocess.Popen[str]]
) -> None:
    first = instance.start("run", "--seat", "gpu0")
    second = instance.start("run", "--seat", "gpu1", "--roles", "work")
    started += [first, second]
    wait_for(lambda: leases_of(instance, "gpu0") and leases_of(instance, "gpu1"), 60, "both")
    told = instance.status()
    assert {name: one["pid"] for name, one in told["daemon"]["seats"].items()} == {
        "gpu0": first.pid,
        "gpu1": second.pid,
    }
    assert set(told["ingest"]["scanned_by"].values()) == {"gpu0"}
    again = instance.run("run", "--seat", "gpu1")
    assert again.returncode == 1
    assert f"another featd (pid {second.pid}) is running" in again.stderr

    others = set(leases_of(instance, "gpu1"))
    arrive(instance)
    left = killed_amid_work(instance, first, "gpu0")
    killed = time.monotonic()
    moved = replace(instance, host="elsewhere") if os.geteuid() == 0 else instance
    first = moved.start("run", "--seat", "gpu0")
    started.append(first)
    wait_for(lambda: not left & set(leases_of(instance, "gpu0")), SOON, "the end of its leases")
    print(f"\nits images were free {time.monotonic() - killed:.1f} s after the kill")
    assert set(leases_of(instance, "gpu1")) == others, "the other's is its own"
    wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 120, "all images")
    assert all(done_by(instance)[seat] > 0 for seat in ("gpu0", "gpu1"))
    if moved is not instance:
        told = instance.status()
        assert list(told["daemon"]["seats"]) == ["gpu1"], "the other is no seat of this host any more"
        assert "dead" not in [worker["state"] for worker in told["workers"]]
    for process in (first, second):
        process.terminate()
    assert [process.wait(60) for process in (first, second)] == [0, 0]
    drain(instance)  # finds what the killed worker had begun
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    check_no_vector_twice(instance)


def test_seats_drain_together_and_one_that_only_works_does_not_scan(
    instance: Instance, started: list[subprocess.Popen[str]]
) -> None:
    arrive(instance)
    scans = instance.start("run", "--roles", "ingest")
    started.append(scans)
    wait_for(lambda: instance.count("pending") == PHOTOGRAPHS, 60, "a scan")
    assert not instance.live_workers()
    scans.terminate()
    assert scans.wait(30) == 0
    (instance.settings.roots[0].path / "late.png").touch()
    seats = [instance.start("run", "--drain", "--roles", "work", "--seat", f"s{n}") for n in range(2)]
    started += seats
    assert [seat.wait(120) for seat in seats] == [0, 0]
    assert check_promise(instance) == {"done": PHOTOGRAPHS}, "late.png was not looked for"
    check_no_vector_twice(instance)


def test_a_second_seat_of_the_same_name_is_refused_while_the_first_may_live(
    instance: Instance, started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """As two pods with one name do, each with a state folder and a network of its own."""
    if os.geteuid() != 0:
        missing("a network of one's own needs root")
    one, two = (replace(instance, env={"FEATD_HOST__STATE": str(tmp_path / name)}) for name in ("one", "two"))
    first = one.start("run", "--seat", "pod")
    started.append(first)
    wait_for(instance.live_workers, 60, "a worker")
    assert one.status()["daemon"]["seats"]["pod"]["pid"] == first.pid
    assert not (instance.settings.store.path / "run").exists()

    def second() -> tuple[int, str]:
        command = ["unshare", "--net", *two.command("run", "--drain", "--seat", "pod")]
        environment = {**os.environ, **two.env}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return ended.returncode, ended.stderr

    code, said = second()
    assert (code, "another featd of the name pod is at work" in said) == (75, True), said
    arrive(instance)
    left = killed_amid_work(instance, first, "pod")
    assert second()[0] == 75, "its lease lasts, and nobody here knows that it is dead"
    assert set(leases_of(instance, "pod")) == left
    assert one.run("run", "--drain", "--seat", "pod").returncode == 0, "it knows its own leases"
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
