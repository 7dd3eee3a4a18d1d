"""An hour of life in short: files come, change, move, break and go while workers are killed. In the end catalog,
store and disk agree."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import featd
from featd.reader.features import Batch
from life import Life, agrees, instance_for
from running import Instance, check_index, check_no_vector_twice, check_promise, kill_all, wait_for


def kill_a_worker(instance: Instance, dice: random.Random) -> None:
    workers = instance.live_workers()
    if workers:
        try:
            os.kill(dice.choice(workers)["pid"], dice.choice([signal.SIGKILL, signal.SIGSEGV]))
        except ProcessLookupError:
            return


class Follower:
    """Keeps an index as the documentation says: image -> (root, path, vector)."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.index: dict[int, tuple[str, str, bytes]] = {}
        self.token = ""

    def catch_up(self) -> None:
        with featd.open(self.instance.config) as features:
            token = features.token
            if not self.token:
                for batch in features.batches():
                    self._take(batch)
                self.token = token
            for change in features.changes(since=self.token):
                for image_id in change.deleted.tolist():
                    self.index.pop(image_id, None)
                self._take(change.upserts)
                self.token = change.token

    def _take(self, batch: Batch) -> None:
        for image_id, root, path, vector in zip(
            batch.ids.tolist(), batch.roots, batch.paths, batch.vectors, strict=True
        ):
            self.index[image_id] = (root, path, vector.tobytes())

    def check(self, out: Path) -> None:
        """What it has is what `featd export` writes."""
        exported = self.instance.run("export", str(out))
        assert exported.returncode == 0, exported.stderr
        names = (out / "names.txt").read_text().splitlines()
        roots = (out / "roots.txt").read_text().splitlines()
        vectors = [vector.tobytes() for vector in np.load(out / "features.npy")]
        assert sorted(self.index.values()) == sorted(zip(roots, names, vectors, strict=True))


LONG = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("seed", "seconds"), [(1, 25.0), *(pytest.param(seed, 600.0, marks=LONG) for seed in (2, 3))]
)
def test_an_hour_of_life(tmp_path: Path, seed: int, seconds: float) -> None:
    dice = random.Random(seed)
    life = Life(tmp_path / "images", dice)
    instance = instance_for(life, tmp_path / "instance", search__enabled=True)
    process = instance.start("run")
    try:
        wait_for(instance.live_workers, 90, "a worker")
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 5
        follower = Follower(instance)
        next_look = time.monotonic() + 2
        while time.monotonic() < end:
            life.deed()
            if time.monotonic() > next_kill:
                kill_a_worker(instance, dice)
                next_kill = time.monotonic() + dice.uniform(4, 8)
            if time.monotonic() > next_look:
                follower.catch_up()
                next_look = time.monotonic() + dice.uniform(1, 5)
            time.sleep(dice.uniform(0.0, 0.06))  # life has its own pace
        wait_for(lambda: agrees(instance, life), 120, "agreement of catalog and disk")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    print(dict(life.deeds))
    check_promise(instance)
    check_no_vector_twice(instance)
    check_index(instance)
    follower.catch_up()
    follower.check(tmp_path / "out")
