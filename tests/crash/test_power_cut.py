"""Power cuts: a file system that forgets at once whatever was not on stable storage (ext4's own shutdown, which its
developers test it with). What was done stays done, and the next start goes on."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featd.catalog import connect, counters
from featd.states import State
from photographs import write_photographs
from running import Instance, check_no_vector_twice, check_promise, drain, kill_all, make_instance, wait_for

PHOTOGRAPHS = 120
CUTS = 4
MANY_CUTS = 100
EXT4_IOC_SHUTDOWN = 0x8004587D
WITHOUT_JOURNAL = 2
"""Not even the journal is written out first."""


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.folder = folder / "disk"

    def make(self) -> bool:
        """Whether that is possible here."""
        self.folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        made = subprocess.run(["mkfs.ext4", "-q", str(self.image)], capture_output=True, check=False)
        return not made.returncode and self.mount()

    def mount(self) -> bool:
        command = ["mount", "-o", "loop", str(self.image), str(self.folder)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def unmount(self) -> bool:
        command = ["umount", str(self.folder)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def cut(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))
        finally:
            os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    if os.geteuid() != 0 or not disk.make():
        pytest.skip("needs the right to mount a file as a disk, and mkfs.ext4")
    yield disk
    disk.unmount()


def images_done(instance: Instance) -> int:
    """As the catalog counts them."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            return counters.counts(conn)[State.DONE]
    finally:
        catalog.dispose()


def test_what_is_done_survives_power_cuts(tmp_path: Path, disk: Disk) -> None:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        f"sqlite:///{disk.folder / 'featd.db'}",
        store__path=str(disk.folder / "features"),
        store__shard_rows=5,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
    )

    def done() -> dict[str, tuple[int, int]]:
        return {row.path: (row.shard_id, row.shard_row) for row in instance.rows() if row.state == "done"}

    known: dict[str, tuple[int, int]] = {}
    for _ in range(CUTS):
        process = instance.start("run")
        try:
            wait_for(lambda: len(done()) > len(known) + 7, 60, "work")  # noqa: B023
            known = done()
            disk.cut()
        finally:
            kill_all(process)
        wait_for(disk.unmount, 30, "the end of the disk")
        assert disk.mount()
        assert known.items() <= done().items(), "rows that were done are not done any more"
    assert len(known) < PHOTOGRAPHS, "the cuts came too late"
    assert instance.run("run", "--drain").returncode == 0
    assert known.items() <= done().items()
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_power_cuts_at_any_moment(tmp_path: Path, disk: Disk) -> None:
    """At any moment from the start on, and, more often, while images become done."""
    seed = time.time_ns() % 10**6
    dice = random.Random(seed)
    (tmp_path / "images").mkdir()
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        f"sqlite:///{disk.folder / 'featd.db'}",
        store__path=str(disk.folder / "features"),
        store__shard_rows=64,
        store__min_free=0,
        workers__devices=["cpu", "cpu"],
    )
    images = amid_work = done = 0
    for at in range(MANY_CUTS):
        write_photographs(tmp_path / "images" / str(at), 400)
        images += 400
        process = instance.start("run")
        try:
            deadline = time.monotonic() + dice.choice([dice.uniform(0.1, 5.0), 120.0, 120.0, 120.0])
            goal = done + dice.randrange(1, 400)
            wait_for(lambda: time.monotonic() > deadline or images_done(instance) >= goal, 130)  # noqa: B023
            known = {row.path for row in instance.rows() if row.state == "done"}
            done = len(known)
            amid_work += instance.count("claimed") > 0
            disk.cut()
        finally:
            kill_all(process)
        wait_for(disk.unmount, 30, "the end of the disk")
        assert disk.mount()
        lost = known - {row.path for row in instance.rows() if row.state == "done"}
        assert not lost, f"seed {seed}, cut {at}: done rows are not done any more: {lost}"
    print(f"seed {seed}: {amid_work} of {MANY_CUTS} cuts fell amid work")
    drain(instance, timeout=3000)
    assert check_promise(instance) == {"done": images}
    check_no_vector_twice(instance)
    assert amid_work >= MANY_CUTS * 0.6
