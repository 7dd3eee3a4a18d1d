"""Faults while it runs: stopped and silent workers, full disks, a database that restarts, signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import resource
import shutil
import signal
import subprocess
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from photographs import write_many, write_photographs
from postgres import PostgreSQL
from running import (
    Instance,
    check_promise,
    drain,
    make_instance,
    session_of,
    stop_outside_a_transaction,
    wait_for,
)
from stalling import Stalling

PHOTOGRAPHS = 200


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    return tmp_path / "images"


def slow(folder: Path, images: Path, url: str = "sqlite:///featd.db", **keys: object) -> Instance:
    """An instance that takes some seconds for its images, so that there is time to interfere."""
    keys = {
        "workers__devices": ["cpu"],
        "workers__batch": 2,
        "workers__decoders": 1,
        "store__shard_rows": 5,
        **keys,
    }
    return make_instance(folder, images, url, **keys)


def test_a_worker_that_was_stopped_beyond_its_lease_changes_nothing(
    tmp_path: Path, database_url: str, started: list[subprocess.Popen[str]]
) -> None:
    # So many that the first worker has not done them all before the second has started.
    photographs = 2000
    write_many(tmp_path / "images", photographs, different=80)
    instance = slow(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu", "cpu"],
        workers__lease_seconds=5,
    )
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: len(instance.live_workers()) == 2 and instance.count("done") > 0, 60, "work")
    stopped = instance.live_workers()[0]
    wait_for(lambda: stop_outside_a_transaction(stopped["pid"], database_url), 60, "a moment to stop it")
    wait_for(
        lambda: stopped["id"] not in {one["id"] for one in instance.live_workers()}, 60, "the lease's end"
    )
    os.kill(stopped["pid"], signal.SIGCONT)
    assert process.wait(120) == 0
    assert check_promise(instance) == {"done": photographs}


def test_sigterm_seals_settles_and_gives_the_rest_back(
    tmp_path: Path, images: Path, database_url: str, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images, database_url, store__shard_rows=4096)
    process = instance.start("run")
    started.append(process)
    wait_for(lambda: instance.count("claimed") > 0, 60, "work")
    process.terminate()
    assert process.wait(60) == 0
    states = check_promise(instance)
    assert states["claimed"] == 0
    assert not instance.live_workers()
    assert instance.run("run", "--drain").returncode == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_drain_that_is_stopped_early_says_so_by_its_exit_code(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images)
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: instance.count("claimed") > 0, 60, "work")
    # As a terminal does it: the whole foreground group gets the Ctrl-C, the children are in groups of their own.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 1
    assert check_promise(instance)["claimed"] == 0


def takes_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup


@pytest.mark.parametrize("nohup", [False, True])
def test_closing_the_terminal_ends_a_featd_that_was_started_in_it(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[str]], nohup: bool
) -> None:
    instance = slow(tmp_path / "instance", images)
    command = [*(["nohup"] if nohup else []), *instance.command("run")]
    master, slave = pty.openpty()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=takes_the_terminal,
            cwd=tmp_path,  # nohup writes its file there
        )
    started.append(process)
    os.close(slave)
    wait_for(lambda: instance.count("done") > 0, 60, "work")
    os.close(master)
    if nohup:
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 60, "all images")
        assert process.poll() is None
    else:
        assert process.wait(60) == 0
        assert check_promise(instance)["claimed"] == 0


def test_a_second_featd_on_the_same_store_is_told_so(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images)
    process = instance.start("run")
    started.append(process)
    wait_for(instance.live_workers, 60, "a worker")
    # The lock comes before the net, which is not loaded in vain.
    net = {"NET": "/nowhere.prototxt", "WEIGHTS": "/nowhere.caffemodel", "BLOBS": '["fc7"]'}
    instance.env |= {f"FEATD_MODEL__{key}": value for key, value in net.items()}
    second = instance.run("run", "--drain")
    assert second.returncode == 1
    assert f"another featd (pid {process.pid}) is running on this store and host" in second.stderr


def test_postgresql_that_restarts_costs_nothing(
    tmp_path: Path, images: Path, postgres: PostgreSQL, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images, postgres.url(postgres.create()))
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    postgres.restart_at_once()
    assert process.wait(180) == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_database_that_acknowledges_and_never_answers_holds_nothing_up(
    tmp_path: Path, images: Path, postgres: PostgreSQL, started: list[subprocess.Popen[str]]
) -> None:
    """As poolers and balancers do after a failover: the connection stays, and no answer ever comes."""
    folder = Path(tempfile.mkdtemp(prefix="featd-stall-"))
    folder.chmod(0o755)
    peer = Stalling(folder, postgres.home)
    try:
        url = postgres.url(postgres.create()).replace(str(postgres.home), str(folder))
        instance = slow(tmp_path / "instance", images, url, workers__lease_seconds=6)
        process = instance.start("run", "--drain")
        started.append(process)
        wait_for(lambda: instance.count("done") > 10, 60, "work")
        assert peer.stall() >= 2  # the janitor, and threads of a worker, which may share one
        assert process.wait(120) == 0
        assert check_promise(instance) == {"done": PHOTOGRAPHS}
    finally:
        peer.close()
        shutil.rmtree(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, in the place of a store's shards: its one folder in which no file is open all the time."""
    yield from small_disk(tmp_path / "store" / "shards")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A small disk for a store."""
    yield from small_disk(tmp_path / "store")


def small_disk(folder: Path) -> Iterator[Path]:
    """100 MB, until the end of the test."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m,nr_inodes=1000", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    """Read-only is refused while a shard is being written: try until there is none."""
    command = ["mount", "-o", f"remount,{options}", str(disk)]
    wait_for(lambda: not subprocess.run(command, capture_output=True, check=False).returncode, 30, options)


def fill(disk: Path) -> None:
    """To the last block, whatever is on it already."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def use_up_inodes(disk: Path) -> None:
    (disk / "ballast").mkdir()
    with contextlib.suppress(OSError):
        for n in range(1000):
            (disk / "ballast" / str(n)).touch()


FAULTS_OF_A_DISK: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], None]]] = {
    "full": (
        "No space left on device",
        fill,
        lambda disk: (disk / "ballast").unlink(),
    ),
    "no inodes": (
        "No space left on device",
        use_up_inodes,
        lambda disk: shutil.rmtree(disk / "ballast"),
    ),
    "read-only": ("mounted read-only", lambda disk: remount(disk, "ro"), lambda disk: remount(disk, "rw")),
}
"""What is said of it, how it begins and how it ends."""


@pytest.mark.parametrize("fault", FAULTS_OF_A_DISK)
def test_a_disk_that_takes_nothing_costs_nothing(
    tmp_path: Path, disk: Path, started: list[subprocess.Popen[str]], fault: str
) -> None:
    said, begin, end = FAULTS_OF_A_DISK[fault]
    count, images = 1000, tmp_path / "many"  # more than is done before the fault begins
    write_many(images, count, PHOTOGRAPHS)
    instance = slow(tmp_path / "instance", images, store__path=str(disk.parent), store__shard_rows=20)
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    begin(disk)
    log = instance.folder / "stderr"
    wait_for(lambda: said in log.read_text(), 60, said)
    assert process.poll() is None
    end(disk)
    assert process.wait(120) == 0
    drain(instance)  # takes away what was sealed, and given up as its name may not have been durable
    assert check_promise(instance) == {"done": count}
    assert not list(disk.rglob("*.part"))


def leave(disk: Path, mebibytes: int) -> Path:
    """Fill a small disk but for so much, by the file that is returned."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (100 - mebibytes) << 20)
    return ballast


def test_workers_claim_nothing_while_the_disk_has_less_than_min_free(
    tmp_path: Path, store: Path, started: list[subprocess.Popen[str]]
) -> None:
    count, images = 1000, tmp_path / "many"  # more than is claimed before the disk is full
    write_many(images, count, PHOTOGRAPHS)
    instance = slow(tmp_path / "instance", images, store__path=str(store), store__min_free=50 << 20)
    process = instance.start("run")
    started.append(process)
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    ballast = leave(store, 30)
    log = instance.folder / "stderr"
    wait_for(lambda: " store_lacks_room: " in log.read_text(), 20, "the event")
    wait_for(lambda: instance.count("claimed") == 0, 20, "the end of what is claimed")
    left = instance.count("pending")
    told = instance.status()
    assert told["room"]["lacking"]
    assert told["room"]["needed"] > 0
    (warning,) = told["warnings"]
    assert "less than store.min_free (52.4 MB), so workers claim nothing; the images to do need" in warning
    assert told["holds_back"].startswith("images are waiting for room on the store's disk")
    assert 0 < instance.count("pending") == left
    ballast.unlink()
    wait_for(lambda: instance.count("done") == count, 60, "the rest")
    process.terminate()
    assert process.wait(60) == 0
    assert check_promise(instance) == {"done": count}
    text = log.read_text()
    (line,) = [line for line in text.splitlines() if " store_lacks_room: " in line]
    assert f"min_free={50 << 20}" in line
    assert " free=" in line
    assert " needed=" in line
    assert text.count(" store_has_room: ") == 1
    assert "child_died" not in text


def test_a_drain_without_room_ends_and_says_so(tmp_path: Path, images: Path, store: Path) -> None:
    instance = slow(tmp_path / "instance", images, store__path=str(store), store__min_free=50 << 20)
    ballast = leave(store, 30)
    result = instance.run("run", "--drain", timeout=60)
    assert result.returncode == 75, result.stderr
    assert f"not drained, {PHOTOGRAPHS} images left" in result.stderr
    assert f"less than store.min_free ({50 << 20:,} bytes): make room" in result.stderr
    assert check_promise(instance) == {"pending": PHOTOGRAPHS}
    ballast.unlink()
    drain(instance)


def test_a_full_disk_under_the_catalog_costs_nothing(
    tmp_path: Path, images: Path, disk: Path, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images, f"sqlite:///{disk / 'featd.db'}")
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    log = instance.folder / "stderr"
    wait_for(lambda: "database or disk is full" in log.read_text(), 60, "a full disk")
    ballast.unlink()
    assert process.wait(120) == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_worker_that_can_open_no_more_files_is_replaced(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[str]]
) -> None:
    """An error that no image is to blame for."""
    instance = slow(tmp_path / "instance", images, store__shard_rows=20)
    process = instance.start("run", "--drain")
    started.append(process)
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    (worker,) = instance.live_workers()
    resource.prlimit(worker["pid"], resource.RLIMIT_NOFILE, (3, 3))
    assert process.wait(120) == 0
    assert "child_died: worker-0 died; starting it again" in (instance.folder / "stderr").read_text()
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_second_sigterm_ends_everything_now(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[str]]
) -> None:
    instance = slow(tmp_path / "instance", images)
    process = instance.start("run")
    started.append(process)
    wait_for(lambda: instance.count("claimed") > 0, 60, "work")
    # Not the decoders: one that is stopped while it starts does not die with its worker yet.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGSTOP)  # nobody can drain now
    process.terminate()
    wait_for(lambda: "finishing the batches" in (instance.folder / "stderr").read_text(), 10, "the first")
    process.terminate()
    assert process.wait(10) == 1
    wait_for(lambda: not session_of(process), 10, "the children's death")
    assert instance.run("run", "--drain").returncode == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
