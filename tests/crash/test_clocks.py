"""Hosts whose clocks are wrong, and are set while featd runs: leases go by the catalog's clock."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from needs import missing
from photographs import write_photographs
from postgres import PostgreSQL
from running import Instance, check_no_vector_twice, check_promise, drain, make_instance, wait_for

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
LEASE_SECONDS = 6
SOME = 60


@dataclass
class Clock:
    """The wall clock of one host, as the processes see it that have its `environment`."""

    file: Path

    def set(self, offset: str) -> None:
        """Set it to so much before or after the real one, such as `-2h`; to be seen at once."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.rename(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",  # what sets the wall clock leaves the others as they are
            "NO_FAKE_STAT": "1",
        }


@pytest.fixture
def clocks(tmp_path: Path) -> tuple[Clock, Clock]:
    if LIBRARY is None:
        missing("libfaketime is not installed (apt-get install faketime)")
    ahead, behind = Clock(tmp_path / "ahead"), Clock(tmp_path / "behind")
    ahead.set("+2h")
    behind.set("-2h")
    shown = subprocess.run(["date", "+%s"], env=ahead.environment, capture_output=True, text=True, check=True)
    real = subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True)
    assert 7000 < int(shown.stdout) - int(real.stdout) < 7400, "libfaketime works"
    return ahead, behind


@pytest.mark.long
def test_hosts_with_wrong_clocks_that_are_set_share_the_work(
    tmp_path: Path, postgres: PostgreSQL, clocks: tuple[Clock, Clock], started: list[subprocess.Popen[str]]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "notes.txt").touch()
    instance = make_instance(
        tmp_path / "instance",
        images,
        postgres.url(postgres.create()),
        workers__devices=["cpu"],
        workers__lease_seconds=LEASE_SECONDS,
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=4,
    )
    hosts = [
        replace(instance, host=name, env=clock.environment)
        for name, clock in zip(("ahead", "behind"), clocks, strict=True)
    ]
    started += [host.start("run") for host in hosts]
    wait_for(lambda: workers(instance) == {"ahead", "behind"}, 90, "a worker on each host")
    first = {lease["id"] for lease in instance.live_workers()}
    ahead, behind = clocks
    arrived = 0
    for one, other in (("+2h", "-2h"), ("-1d", "+3h"), ("+30d", "-30d"), ("+0", "+0")):
        write_photographs(images / f"{arrived}", SOME)
        arrived += SOME
        wait_for(lambda before=arrived: instance.count("done") > before - SOME // 2, 90, "work")  # type: ignore[misc]
        ahead.set(one)
        behind.set(other)
        wait_for(lambda all_=arrived: instance.count("done") == all_, 90, "the end of it")  # type: ignore[misc]
    assert {lease["id"] for lease in instance.live_workers()} == first, "no lease was ended by a clock"
    shares = json.dumps([(lease["host"], lease["done"]) for lease in instance.live_workers()])
    assert all(lease["done"] > 0 for lease in instance.live_workers()), shares
    for process in started:
        process.terminate()
    assert [process.wait(60) for process in started] == [0, 0]
    drain(instance)
    assert check_promise(instance) == {"done": arrived}
    check_no_vector_twice(instance)


def workers(instance: Instance) -> set[str]:
    """The hosts whose workers have leases."""
    return {lease["host"] for lease in instance.live_workers()}
