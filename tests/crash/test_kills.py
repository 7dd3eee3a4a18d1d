"""SIGKILL of a worker, of the supervisor, of everything, at random moments: nothing lost, nothing done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from photographs import write_many, write_photographs
from running import (
    Instance,
    check_no_vector_twice,
    check_promise,
    kill_all,
    make_instance,
    session_of,
    wait_for,
)

KILLS = 10
PHOTOGRAPHS = 400
MANY = 40_000


def workers_of(instance: Instance) -> list[int]:
    return [worker["pid"] for worker in instance.live_workers()]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
def test_random_kills(database_url: str, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu", "cpu"],
        workers__batch=4,
        workers__decoders=1,
        store__shard_rows=7,
    )
    done = 0
    for _ in range(KILLS):
        victim = dice.choice(["worker", "supervisor", "everything"])
        run_and_kill(instance, victim, min(done + dice.randrange(0, 40), PHOTOGRAPHS), dice)
        now = instance.count("done")
        assert now >= done, "an image that was done is not any more"
        done = now
    last = instance.run("run", "--drain")
    assert last.returncode == 0, last.stderr
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_full_kills_over_many_images(database_url: str, tmp_path: Path) -> None:
    seed = time.time_ns() % 10**6
    dice = random.Random(seed)
    write_many(tmp_path / "images", MANY)
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu", "cpu"],
        store__shard_rows=500,
    )
    goals = sorted(dice.randrange(MANY) for _ in range(40))
    print(f"seed {seed}, kills at {goals}")
    for goal in goals:
        run_and_kill(instance, "everything", goal, dice)
    last = instance.run("run", "--drain", timeout=1200)
    assert last.returncode == 0, last.stderr
    assert check_promise(instance) == {"done": MANY}
    check_no_vector_twice(instance)


def run_and_kill(instance: Instance, victim: str, goal: int, dice: random.Random) -> None:
    """Start featd, wait until `goal` images are done (or it has ended), and kill `victim`."""
    process = instance.start("run", "--drain")

    def ended() -> bool:
        return process.poll() is not None

    try:
        wait_for(lambda: workers_of(instance) or ended(), 60, "a worker")
        wait_for(lambda: instance.count("done") >= goal or ended(), 600, "progress")
        print(f"killing {victim} at {instance.count('done')} done")
        if victim == "worker" and (pids := workers_of(instance)):
            os.kill(dice.choice(pids), signal.SIGKILL)
            wait_for(lambda: instance.count("done") > goal or ended(), 60, "recovery")
        elif victim == "supervisor" and not ended():
            process.kill()
            process.wait(10)
            wait_for(lambda: not session_of(process), 10, "the children's death")
    finally:
        kill_all(process)
