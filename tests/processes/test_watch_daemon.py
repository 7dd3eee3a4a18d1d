"""The real daemon, idle or busy: how soon what arrives is done, and what it does when it cannot keep up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featd import clock
from needs import missing
from photographs import write_photographs
from running import Instance, check_promise, kill_all, make_instance, wait_for

SOON_SECONDS = 5.0
"""Promised are 2; a busy test machine gets some more. The measured times are printed (pytest -s)."""
FLOOD_FILES = int(os.environ.get("FEATD_TEST_FLOOD_FILES", "20000"))
FLOOD_FOLDERS = 200
SLOW_WRITER = """
import sys, time
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "wb", buffering=0) as file:
    for part in range(10):
        file.write(data[len(data) * part // 10 : len(data) * (part + 1) // 10])
        time.sleep(0.3)
"""


@pytest.fixture
def outside(tmp_path: Path) -> list[Path]:
    """Photographs on the same disk, beside the root."""
    write_photographs(tmp_path / "outside", 12)
    return sorted((tmp_path / "outside").rglob("*.jpg"))


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    write_photographs(tmp_path / "images", 3)
    made = make_instance(
        tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"], workers__decoders=1
    )
    text = made.config.read_text()
    made.config.write_text(text.replace("settle_seconds = 0.0", "settle_seconds = 1.0"))
    return made


@pytest.fixture
def running(instance: Instance) -> Iterator[Instance]:
    """An instance whose daemon has done what was there, and is idle."""
    process = instance.start("run")
    try:
        wait_for(
            lambda: instance.count("done") == 3 and ingest(instance)["watching"] == 1, 60, "an idle daemon"
        )
        yield instance
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert ingest(instance)["watching"] == 0
    finally:
        kill_all(process)


def ingest(instance: Instance) -> dict[str, Any]:
    return instance.status()["ingest"]  # type: ignore[no-any-return]


def rows(instance: Instance) -> dict[str, Any]:
    return {row.path: row for row in instance.rows()}


def test_what_arrives_at_an_idle_daemon_is_done_within_moments(
    running: Instance, tmp_path: Path, outside: list[Path]
) -> None:
    root = tmp_path / "images"
    album = tmp_path / "outside" / "album"
    shutil.copytree(outside[0].parent, album, copy_function=shutil.copyfile)

    def link_young() -> None:
        shutil.copyfile(outside[4], tmp_path / "outside" / "young")
        os.link(tmp_path / "outside" / "young", root / "linked young.jpg")

    def write_slowly() -> None:
        subprocess.run([sys.executable, "-c", SLOW_WRITER, outside[5], root / "slow.jpg"], check=True)

    def rename_over() -> None:
        shutil.copyfile(outside[7], root / "over.tmp")
        (root / "over.tmp").rename(root / "copied.jpg")

    def make_folders() -> None:
        (root / "new" / "folder").mkdir(parents=True)
        shutil.copyfile(outside[8], root / "new" / "folder" / "in.jpg")

    ways: dict[str, tuple[Callable[[], Any], list[str]]] = {
        "copied": (lambda: shutil.copyfile(outside[1], root / "copied.jpg"), ["copied.jpg"]),
        "copied with its time": (lambda: shutil.copy2(outside[2], root / "copied2.jpg"), ["copied2.jpg"]),
        "moved in": (lambda: outside[3].rename(root / "moved.jpg"), ["moved.jpg"]),
        "hard-linked, old": (lambda: os.link(outside[6], root / "linked.jpg"), ["linked.jpg"]),
        "hard-linked, young": (link_young, ["linked young.jpg"]),
        "written over 3 s": (write_slowly, ["slow.jpg"]),
        "renamed over another": (rename_over, ["copied.jpg"]),
        "in new folders": (make_folders, ["new/folder/in.jpg"]),
        "a moved-in folder": (
            lambda: album.rename(root / "album"),
            [f"album/{path.relative_to(album)}" for path in album.rglob("*.jpg")],
        ),
    }
    os.utime(outside[6], (1e9, 1e9))
    took: dict[str, float] = {}
    for way, (act, paths) in ways.items():
        before = {path: row.version for path, row in rows(running).items()}
        act()
        complete = clock.utcnow()

        def done(paths: list[str] = paths, before: dict[str, int] = before) -> list[datetime] | None:
            found = rows(running)
            if all(
                path in found and found[path].state == "done" and found[path].version > before.get(path, 0)
                for path in paths
            ):
                return [found[path].updated_at for path in paths]
            return None

        moments = wait_for(done, 30, way)
        took[way] = max((moment - complete).total_seconds() for moment in moments)
    print("\nseconds from complete to done:", {way: round(seconds, 2) for way, seconds in took.items()})
    assert {way: seconds for way, seconds in took.items() if seconds > SOON_SECONDS} == {}
    assert rows(running)["slow.jpg"].version == 1
    (root / "moved.jpg").unlink()
    wait_for(lambda: rows(running)["moved.jpg"].state == "gone", SOON_SECONDS, "the deleted file to be gone")


@pytest.mark.serial
@pytest.mark.timeout(900)
def test_a_flood_becomes_rows_exactly_once_and_the_overflow_is_shown(
    instance: Instance, tmp_path: Path
) -> None:
    limit = Path("/proc/sys/fs/inotify/max_queued_events")
    if not os.access(limit, os.W_OK):
        missing(f"{limit} cannot be written: run as root")
    root = tmp_path / "images"
    picture = cv2.imencode(".png", np.full((8, 8, 3), 7, np.uint8))[1].tobytes()
    before = limit.read_text()
    limit.write_text("512")
    try:
        process = instance.start("run")
        try:
            wait_for(lambda: ingest(instance)["watching"] == 1, 60, "the watch")
        finally:
            limit.write_text(before)
        for number in range(FLOOD_FILES):
            folder = root / "flood" / str(number % FLOOD_FOLDERS)
            if number < FLOOD_FOLDERS:
                folder.mkdir(parents=True)
            (folder / f"{number}.png").write_bytes(picture)

        made = clock.monotonic()

        def counted() -> int:
            return int(instance.status()["images"]["total"])

        wait_for(lambda: counted() >= FLOOD_FILES + 3, 600, "all rows")
        print(f"\n{FLOOD_FILES} files were rows {clock.monotonic() - made:.1f} s after the last was made")
        assert counted() == FLOOD_FILES + 3
        status = wait_for(lambda: (s := ingest(instance))["overflows"] and s, 30, "the overflow")
        print("the status says:", status)
        paths = [row.path for row in instance.rows() if row.path.startswith("flood/")]
        assert sorted(paths) == sorted(f"flood/{n % FLOOD_FOLDERS}/{n}.png" for n in range(FLOOD_FILES))
        # The watch goes on, also in the folders that were made while events were lost.
        os.link(root / "flood" / "7" / "7.png", root / "flood" / "7" / "after.png")
        wait_for(lambda: "flood/7/after.png" in rows(instance), 60, "a file after the flood")
        wait_for(lambda: not ingest(instance).get("notes"), 120, "the note to be taken back")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        kill_all(process)
    assert check_promise(instance)["failed"] == 0


@pytest.mark.serial
def test_out_of_watches_is_shown(instance: Instance, tmp_path: Path) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_watches")
    if not os.access(limit, os.W_OK):
        missing(f"{limit} cannot be written: run as root")
    for number in range(30):
        (tmp_path / "images" / str(number)).mkdir()
    before = limit.read_text()
    limit.write_text("10")
    try:
        process = instance.start("run")
        try:
            told = wait_for(lambda: ingest(instance).get("notes"), 60, "the note")
        finally:
            limit.write_text(before)
        assert "out of inotify watches" in told[str(tmp_path / "images")]
        assert ingest(instance)["watching"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
