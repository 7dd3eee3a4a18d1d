"""An hour of life in short: files come, change, move, break and go while workers are killed. In the end catalog,
store and disk agree."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from life import Life, agrees, instance_for
from running import Instance, check_no_vector_twice, check_promise, kill_all, wait_for


def kill_a_worker(instance: Instance, dice: random.Random) -> None:
    workers = instance.live_workers()
    if workers:
        try:
            os.kill(dice.choice(workers)["pid"], dice.choice([signal.SIGKILL, signal.SIGSEGV]))
        except ProcessLookupError:
            return


LONG = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("seed", "seconds"), [(1, 25.0), *(pytest.param(seed, 600.0, marks=LONG) for seed in (2, 3))]
)
def test_an_hour_of_life(tmp_path: Path, seed: int, seconds: float) -> None:
    dice = random.Random(seed)
    life = Life(tmp_path / "images", dice)
    instance = instance_for(life, tmp_path / "instance")
    process = instance.start("run")
    try:
        wait_for(instance.live_workers, 90, "a worker")
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 5
        while time.monotonic() < end:
            life.deed()
            if time.monotonic() > next_kill:
                kill_a_worker(instance, dice)
                next_kill = time.monotonic() + dice.uniform(4, 8)
            time.sleep(dice.uniform(0.0, 0.06))  # life has its own pace
        wait_for(lambda: agrees(instance, life), 120, "agreement of catalog and disk")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    print(dict(life.deeds))
    check_promise(instance)
    check_no_vector_twice(instance)
