"""Seats on a real Ray cluster of several nodes on this machine, with real PostgreSQL, whose parts are killed and cut
off from each other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, schema
from networks import Network, ip, need_networks
from photographs import write_photographs
from postgres import PostgreSQL
from ray_nodes import Cluster, Node, need_ray
from running import Instance, check_no_vector_twice, check_promise, drain, make_instance, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

LEASE_SECONDS = 10
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-these-tests-and-of-nobody-else"}
HEAD, DATABASE = "10.213.19.1", "10.213.19.2"


def made(tmp_path: Path, url: str, env: dict[str, str]) -> Instance:
    (tmp_path / "images").mkdir(exist_ok=True)
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        url,
        workers__devices=["cpu"],
        workers__threads=1,
        workers__batch=4,
        workers__lease_seconds=LEASE_SECONDS,
        store__shard_rows=32,
    )
    return replace(instance, env=env)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    need_ray()
    cluster = Cluster(env=dict(TOKEN))
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def instance(tmp_path: Path, postgres: PostgreSQL, cluster: Cluster) -> Instance:
    return made(tmp_path, postgres.url(postgres.create()), cluster.env)


def ray(instance: Instance, *arguments: str, code: int = 0) -> str:
    result = instance.run("ray", *arguments, timeout=300)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def seats(instance: Instance) -> dict[str, dict[str, Any]]:
    found = json.loads(ray(instance, "status", "--json"))["seats"]
    return {one["seat"]: one for one in found}


def states(instance: Instance) -> dict[str, str]:
    return {name: one["state"] for name, one in seats(instance).items()}


def leases(instance: Instance) -> dict[str, int]:
    """Seat -> its live lease."""
    return {one["host"]: one["id"] for one in instance.live_workers()}


def arrive(instance: Instance, count: int) -> int:
    """More photographs, which the catalog gets to know; returns how many there are now."""
    root = instance.settings.roots[0].path
    write_photographs(root / f"album-{time.monotonic_ns()}", count)
    result = instance.run("scan")
    assert result.returncode == 0, result.stderr
    return len(instance.rows())


def amid_work(instance: Instance) -> None:
    before = instance.count("done")
    wait_for(lambda: instance.count("done") > before + 10, 120, "work")
    assert instance.count("pending"), "too few images: the work was over before anything went wrong"


def replaced(instance: Instance, seat: str, old: int, seconds: float, since: float, what: str) -> None:
    """Wait until the seat has another lease, and say how long that took."""
    wait_for(lambda: leases(instance).get(seat, old) != old, seconds, f"{what}: another lease of {seat}")
    print(f"\n{what}: {seat} was at work again after {time.monotonic() - since:.1f} s")


def finished(instance: Instance, count: int) -> None:
    wait_for(lambda: instance.count("done") == count, 600, "the end of the work")
    ray(instance, "down")
    assert leases(instance) == {}
    drain(instance)  # what was left unrecorded is put aside
    assert check_promise(instance) == {"done": count}
    check_no_vector_twice(instance)


def node_of(cluster: Cluster, seat: str) -> Node:
    return next(node for node in cluster.nodes if node.processes(f"--seat {seat} "))


def test_seats_are_placed_scaled_refused_and_ended(cluster: Cluster, instance: Instance) -> None:
    nowhere = replace(instance, env={**instance.env, "RAY_ADDRESS": "127.0.0.1:1"})
    assert "no Ray cluster answers: [Errno 111] Connection refused" in ray(nowhere, "status", code=75)
    cluster.start_head()
    assert "there are no seats" in ray(instance, "status")
    cluster.add(2)
    cluster.add(2)
    told = ray(instance, "up", "--seats", "1")
    assert "ray-0: running" in told
    assert "is open" not in told
    wait_for(lambda: set(leases(instance)) == {"ray-0"}, 60, "a lease")
    first = leases(instance)["ray-0"]
    began = time.monotonic()
    assert "4 of 4 seats running" in ray(instance, "scale", "4")
    wait_for(lambda: len(leases(instance)) == 4, 90, "four leases")
    print(f"\nfrom 1 to 4 seats in {time.monotonic() - began:.1f} s")
    assert "4 of 4 seats running" in ray(instance, "up", "--seats", "4")  # once more does nothing
    assert leases(instance)["ray-0"] == first
    assert "end them first" in ray(instance, "up", "--seats", "4", "--gpus-per-seat", "0", code=78)
    # A seat that no node has room for does not hold up the others.
    assert "ray-4: waiting: Ray has not placed it" in ray(instance, "scale", "5")
    count = arrive(instance, 60)
    began = time.monotonic()
    ray(instance, "scale", "1")
    print(f"\nfrom 5 to 1 seats in {time.monotonic() - began:.1f} s")
    assert set(leases(instance)) == {"ray-0"}
    wait_for(lambda: instance.count("done") == count, 120, "the end of the work")
    assert "shard_sealed" in cluster.log(), "featd's log is in Ray's"
    assert ":actor_name:featd ray-0" in cluster.log()

    # A mistake that needs a person stops all, and is shown until it is corrected.
    ray(instance, "scale", "3")
    wait_for(lambda: len(leases(instance)) == 3, 60, "three leases")
    right = instance.config.read_text()
    instance.config.write_text(right + '\n[model]\nnet = "nowhere.prototxt"\n')
    node_of(cluster, "ray-1").kill("--seat ray-1 ")
    wait_for(lambda: set(states(instance).values()) == {"refused", "stopped"}, 120, "the end of all seats")
    told = ray(instance, "status")
    assert "ray-1: refused" in told
    assert "nowhere.prototxt" in told
    assert "stopped because of ray-1, which ended with exit code 78" in told
    assert leases(instance) == {}
    instance.config.write_text(right)
    assert "3 of 3 seats running" in ray(instance, "up", "--seats", "3")
    wait_for(lambda: len(leases(instance)) == 3, 60, "three leases")
    began = time.monotonic()
    assert "3 seats ended" in ray(instance, "down", "--now")
    wait_for(lambda: leases(instance) == {}, 30, "the end of the leases")
    assert ray(instance, "status").startswith("there are no seats")


def killed_amid_work(
    cluster: Cluster, instance: Instance, of: str, what: str, number: int = signal.SIGKILL
) -> str:
    """Send a signal to what runs under the name `of` on the node of a seat, which is then at work again elsewhere.
    Returns why its lease ended."""
    amid_work(instance)
    old = leases(instance)["ray-0"]
    node = node_of(cluster, "ray-0")
    began = time.monotonic()
    node.kill(of, number)
    wait_for(lambda: leases(instance).get("ray-0") != old, 60, "the end of the lease")
    print(f"\n{what}: the lease had ended after {time.monotonic() - began:.1f} s")
    replaced(instance, "ray-0", old, 240, began, what)
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with connect.reading(catalog) as conn:
        why = conn.scalar(sa.select(schema.leases.c.end_reason).where(schema.leases.c.id == old))
    catalog.dispose()
    return str(why)


def test_3000_images_are_done_while_an_actor_and_featd_are_killed_and_a_node_is_lost(
    cluster: Cluster, instance: Instance
) -> None:
    cluster.start_head()
    for _ in range(3):
        cluster.add(2)
    count = arrive(instance, 3000)
    ray(instance, "up", "--seats", "3")
    wait_for(lambda: len(leases(instance)) == 3, 60, "three leases")
    assert killed_amid_work(cluster, instance, "ray::Seat", "actor killed") == "stopped"
    killed_amid_work(cluster, instance, "--seat ray-0 --roles", "featd and its shim killed")
    killed_amid_work(cluster, instance, "", "node lost")
    finished(instance, count)


def test_a_seat_leaves_a_node_whose_raylet_is_killed_and_one_that_is_drained(
    cluster: Cluster, instance: Instance
) -> None:
    cluster.start_head()
    for _ in range(3):
        cluster.add(2)
    count = arrive(instance, 1500)
    ray(instance, "up", "--seats", "2")
    wait_for(lambda: len(leases(instance)) == 2, 60, "two leases")
    # As a cloud's notice, 30 s before a machine goes.
    notice = ("ray.scripts.scripts start", "node drained", signal.SIGTERM)
    assert killed_amid_work(cluster, instance, *notice) == "stopped"
    assert killed_amid_work(cluster, instance, "raylet/raylet", "raylet killed") == "stopped"
    assert "this node is draining" in cluster.log()
    finished(instance, count)


def test_a_new_cluster_goes_on_where_a_lost_one_stood(cluster: Cluster, instance: Instance) -> None:
    head = cluster.start_head()
    cluster.add(2)
    count = arrive(instance, 1500)
    ray(instance, "up", "--seats", "2")
    wait_for(lambda: len(leases(instance)) == 2, 60, "two leases")
    amid_work(instance)
    old = leases(instance)
    began = time.monotonic()
    head.lose()
    wait_for(lambda: leases(instance) == {}, 180, "the end of the seats without a head")
    print(f"\nhead lost: the seats had ended after {time.monotonic() - began:.1f} s")
    cluster.start_head()
    cluster.add(2)
    assert "2 of 2 seats running" in ray(instance, "up", "--seats", "2")
    for seat in ("ray-0", "ray-1"):
        replaced(instance, seat, old[seat], 90, began, "head lost, another cluster")
    arrive(instance, 20)
    finished(instance, count + 20)


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[tuple[Cluster, Instance, Node, Callable[..., None]]]:
    """A cluster of two nodes in networks of their own, and what cuts the first off from some addresses, or mends it."""
    need_ray()
    need_networks()
    networks = (Network(f"fa{os.getpid()}", "10.213.17"), Network(f"fb{os.getpid()}", "10.213.18"))
    with contextlib.ExitStack() as undo:
        server = PostgreSQL("10.213.0.0/16", port=5439)
        undo.callback(server.close)
        for network in networks:
            network.make()
            undo.callback(network.remove)
            ip("-n", network.name, "link", "set", "lo", "up")
            ip("-n", network.name, "route", "add", "default", "via", f"{network.subnet}.1")
        for address in (HEAD, DATABASE):
            ip("address", "add", f"{address}/32", "dev", networks[1].name)
        cluster = Cluster(env=dict(TOKEN), address=HEAD)
        undo.callback(cluster.end)
        instance = made(tmp_path, server.url_from(f"{DATABASE}:5439", server.create()), cluster.env)
        cluster.start_head()
        first = cluster.add(1, networks[0].name, f"{networks[0].subnet}.2")
        cluster.add(2, networks[1].name, f"{networks[1].subnet}.2")

        def cut(*addresses: str, verb: str = "add") -> None:
            for address in addresses:
                ip("-n", networks[0].name, "route", verb, "blackhole", f"{address}/32")

        yield cluster, instance, first, cut


def at_work_on(instance: Instance, node: Node) -> tuple[str, int]:
    """Start two seats; the one on `node`, amid work, and its lease."""
    ray(instance, "up", "--seats", "2")
    wait_for(lambda: len(leases(instance)) == 2, 60, "two leases")
    seat = next(name for name in leases(instance) if node.processes(f"--seat {name} "))
    amid_work(instance)
    return seat, leases(instance)[seat]


def test_a_node_that_is_cut_off_from_the_head_but_not_from_the_database(
    cut_off: tuple[Cluster, Instance, Node, Callable[..., None]],
) -> None:
    cluster, instance, first, cut = cut_off
    count = arrive(instance, 1500)
    seat, old = at_work_on(instance, first)
    began = time.monotonic()
    cut(HEAD, "10.213.17.1")
    other = cluster.nodes[-1]
    wait_for(lambda: other.processes(f"--seat {seat} "), 180, "the seat on the other node")
    print(f"\ncut off from the head: Ray starts {seat} elsewhere after {time.monotonic() - began:.1f} s")
    replaced(instance, seat, old, 400, began, "cut off from the head")
    assert not first.processes(f"--seat {seat} "), "two featd of one seat"
    arrive(instance, 20)
    finished(instance, count + 20)


def test_a_node_that_is_cut_off_from_the_database_but_not_from_the_head(
    cut_off: tuple[Cluster, Instance, Node, Callable[..., None]],
) -> None:
    _, instance, first, cut = cut_off
    count = arrive(instance, 600)
    seat, old = at_work_on(instance, first)
    began = time.monotonic()
    cut(DATABASE)
    wait_for(lambda: instance.count("done") == count, 300, "the work, by the other seat")
    wait_for(lambda: seat not in leases(instance), 60, "the end of its lease")
    print(f"\ncut off from the database: all was done after {time.monotonic() - began:.1f} s")
    assert seats(instance)[seat]["state"] in ("running", "retrying")
    mended = time.monotonic()
    cut(DATABASE, verb="del")
    replaced(instance, seat, old, 180, mended, "database within reach again")
    finished(instance, arrive(instance, 40))
