"""`featd backup` while featd runs, and `featd restore` onto an empty machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featd.backup.backup import back_up
from featd.backup.folder import Manifest, write_manifest
from featd.catalog import connect, dump
from photographs import write_photographs
from postgres import PostgreSQL
from running import (
    Instance,
    check_promise,
    drain,
    forget_a_shard,
    kill_all,
    live_vectors,
    make_instance,
    wait_for,
)
from terminal import Terminal

PHOTOGRAPHS = 60

Vectors = dict[tuple[str, str], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_photographs(folder, PHOTOGRAPHS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """The vectors of an instance that nothing happened to."""
    instance = slow(tmp_path_factory.mktemp("undisturbed"), images)
    drain(instance)
    return live_vectors(instance)


def slow(folder: Path, images: Path, url: str = "sqlite:///featd.db") -> Instance:
    return make_instance(
        folder,
        images,
        url,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=5,
    )


def backup(instance: Instance, folder: Path, code: int = 0) -> str:
    """What it printed."""
    result = instance.run("backup", str(folder))
    assert result.returncode == code, result.stderr
    assert not list(folder.rglob("*.part"))
    return result.stdout + result.stderr


def machine(instance: Instance, folder: Path, url: str) -> Instance:
    """Another machine, with a configuration that names its own database."""
    folder.mkdir()
    lines = [
        f'url = "{url}"' if line.startswith("url = ") else line
        for line in instance.config.read_text().splitlines()
    ]
    (folder / "featd.toml").write_text("\n".join(lines))
    return Instance(folder, host=folder.name)


def check(instance: Instance, wanted: Vectors) -> None:
    assert check_promise(instance) == {"done": len(wanted)}
    found = live_vectors(instance)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], vector) for key, vector in wanted.items())


def shards_below(folder: Path) -> dict[str, os.stat_result]:
    return {str(path.relative_to(folder)): path.stat() for path in (folder / "shards").rglob("*.h5")}


def test_a_backup_of_a_running_featd_is_restored_onto_an_empty_machine(
    tmp_path: Path, images: Path, undisturbed: Vectors, database_url: str, another_url: Callable[[], str]
) -> None:
    first, folder = slow(tmp_path / "one", images, database_url), tmp_path / "backup"
    process = first.start("run")
    try:
        wait_for(lambda: first.count("done") >= PHOTOGRAPHS // 3, 60, "a third")
        backup(first, folder)
        wait_for(lambda: first.count("done") >= PHOTOGRAPHS // 2, 60, "half of it")
        said = backup(first, folder)
        assert first.live_workers(), "it was running"
    finally:
        kill_all(process)
    saved = shards_below(folder)
    assert f"in {len(saved)} shards" in said
    text = first.config.read_text()
    shutil.rmtree(first.folder)
    [copy] = folder.glob("catalog-*")
    assert (copy / "featd.toml").read_text() == text

    second = machine(Instance(copy), tmp_path / "two", another_url())
    restored = second.run("restore", str(folder))
    assert restored.returncode == 0, restored.stderr
    assert "then `featd --config" in restored.stderr
    assert shards_below(second.settings.store.path).keys() == saved.keys()
    assert not second.live_workers(), "the leases of the backup have ended"
    assert PHOTOGRAPHS // 2 <= second.count("done") == check_promise(second)["done"]
    catalog = connect.open_catalog(second.settings.catalog.url)
    with connect.reading(catalog) as conn:
        assert conn.exec_driver_sql("SELECT images FROM featd_backlog").scalar_one() == second.count(
            "pending"
        )
    catalog.dispose()
    drain(second)
    check(second, undisturbed)
    assert saved.keys() <= shards_below(second.settings.store.path).keys()
    again = second.run("restore", str(folder))
    assert (again.returncode, "is a store already" in again.stderr) == (1, True)
    check(second, undisturbed)


def test_the_configuration_of_the_backup_is_written_where_there_is_none(
    tmp_path: Path, images: Path, undisturbed: Vectors
) -> None:
    first, folder = slow(tmp_path / "one", images), tmp_path / "backup"
    drain(first)
    backup(first, folder)
    shutil.rmtree(first.folder)
    second = Instance(tmp_path / "elsewhere" / "deep")
    restored = second.run("restore", str(folder))
    assert restored.returncode == 0, restored.stderr
    assert f"wrote {second.config}" in restored.stdout
    check(second, undisturbed)
    drain(second)
    check(second, undisturbed)


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than that of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="featd-backup-", dir="/dev/shm"))
    if folder.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is on the file system of the tests")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["here", "on another disk"])
def test_the_next_backup_brings_only_what_is_new(
    tmp_path: Path, images: Path, other_disk: Path, place: str, undisturbed: Vectors
) -> None:
    instance = slow(tmp_path / "one", images)
    folder = tmp_path / "backup" if place == "here" else other_disk / "backup"
    drain(instance)
    assert "12 shards new" in backup(instance, folder)
    before = shards_below(folder)
    assert {found.st_nlink for found in before.values()} == {2 if place == "here" else 1}
    assert "0 shards new" in backup(instance, folder)
    some = sorted(images.rglob("*.jpg"))[0]
    assert instance.run("enqueue", "--force", str(some)).returncode == 0
    drain(instance)
    backup(instance, folder)
    after = shards_below(folder)
    assert {name: found.st_ino for name, found in after.items() if name in before} == {
        name: found.st_ino for name, found in before.items()
    }
    second = machine(instance, tmp_path / "two", f"sqlite:///{tmp_path}/two/featd.db")
    assert second.run("restore", str(folder)).returncode == 0
    check(second, undisturbed)


def test_a_bad_shard_is_named_and_the_others_are_in_the_backup(tmp_path: Path, images: Path) -> None:
    instance, folder = slow(tmp_path / "one", images), tmp_path / "backup"
    drain(instance)
    store = instance.settings.store.path
    flipped, lost, *_ = sorted((store / "shards").rglob("*.h5"))
    whole = flipped.read_bytes()
    flipped.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    lost.rename(tmp_path / "kept")
    said = backup(instance, folder, code=4)
    assert f"{flipped.name}: damaged: its bytes differ" in said
    assert f"{lost.name}: missing" in said
    assert len(shards_below(folder)) == PHOTOGRAPHS // 5 - 2

    second = machine(instance, tmp_path / "two", f"sqlite:///{tmp_path}/two/featd.db")
    restored = second.run("restore", str(folder))
    assert restored.returncode == 4
    assert lost.name in restored.stderr
    drain(second)  # it starts: what is lost is known
    assert second.run("enqueue", "--force", str(images)).returncode == 0
    drain(second)
    assert second.count("done") == PHOTOGRAPHS
    assert len(live_vectors(second)) == PHOTOGRAPHS

    flipped.write_bytes(whole)
    (tmp_path / "kept").rename(lost)
    backup(instance, folder)
    flipped.unlink()  # the backup has it
    backup(instance, folder)
    assert len(shards_below(folder)) == PHOTOGRAPHS // 5


def test_a_shard_that_goes_during_the_backup_is_no_fault_where_nothing_names_it_any_more(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As compaction does with a shard whose rows it has moved: another copy of the catalog is made."""
    instance, folder = slow(tmp_path / "one", images), tmp_path / "backup"
    drain(instance)
    real, gone = dump.dump, []

    def dump_then_compact(catalog: Any, file: Path) -> dump.Dumped:
        dumped = real(catalog, file)
        if not gone:
            gone.append(forget_a_shard(instance))
            gone[0].unlink()
        return dumped

    monkeypatch.setattr(dump, "dump", dump_then_compact)
    catalog = connect.open_catalog(instance.settings.catalog.url)
    made = back_up(catalog, instance.settings.store.path, instance.config, folder, lambda done, total: None)
    catalog.dispose()
    assert (made.done, made.shards, made.new) == (PHOTOGRAPHS - 5, 11, 11)
    assert not made.brought.faulty
    assert check_restored(instance, folder, tmp_path / "two") == PHOTOGRAPHS - 5


def test_what_is_no_place_for_a_backup_or_a_restore_is_refused(tmp_path: Path, images: Path) -> None:
    instance, other = slow(tmp_path / "one", images), slow(tmp_path / "other", images)
    folder, store = tmp_path / "backup", instance.settings.store.path
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter").touch()

    def refused(instance: Instance, *command: str, code: int = 1) -> str:
        result = instance.run(*command)
        assert result.returncode == code, result.stderr
        return result.stderr

    assert "is in the store" in refused(instance, "backup", str(store / "backup"))
    assert "neither empty nor a backup" in refused(instance, "backup", str(full))
    assert "disk of the backups mounted" in refused(instance, "backup", str(tmp_path / "no" / "disk"))
    assert "no backup there" in refused(instance, "restore", str(full), code=3)
    backup(instance, folder)
    assert "backup of another instance" in refused(other, "backup", str(folder))
    assert "is a store already" in refused(instance, "restore", str(folder))
    shutil.rmtree(store)
    assert "exists already, and a restore replaces none" in refused(instance, "restore", str(folder))
    store.mkdir()
    (store / "letter").touch()
    assert "is not empty" in refused(instance, "restore", str(folder))
    manifest = folder / "featd-backup.json"
    manifest.write_text(manifest.read_text().replace('"schema": "0', '"schema": "9'))
    assert "install a newer featd" in refused(instance, "restore", str(folder), code=78)
    manifest.write_text("{}")
    assert "is damaged" in refused(instance, "restore", str(folder))


def test_a_backup_of_an_earlier_version_is_upgraded_when_it_is_restored(tmp_path: Path, images: Path) -> None:
    kept = Path(__file__).parents[1] / "fixtures/0.1.0/gist-sqlite"
    folder, second = tmp_path / "backup", Instance(tmp_path / "two")
    (folder / "catalog-1").mkdir(parents=True)
    shutil.copyfile(kept / "featd.db", folder / "catalog-1/catalog")
    shutil.copytree(kept / "features/shards", folder / "shards")
    marker = json.loads((kept / "features/featd-store.json").read_text())
    write_manifest(folder, Manifest(marker["instance"], "sqlite", "0001", "catalog-1"))
    second.folder.mkdir()
    second.config.write_text(f'[[roots]]\npath = "{images}"\n')
    restored = second.run("restore", str(folder))
    assert restored.returncode == 0, restored.stderr
    assert json.loads(second.run("db", "current", "--json").stdout)["up_to_date"]
    assert second.run("export", str(tmp_path / "out")).returncode == 0
    backup(second, tmp_path / "new")


def test_only_one_backup_works_in_a_folder(tmp_path: Path, images: Path) -> None:
    instance, folder = slow(tmp_path / "one", images), tmp_path / "backup"
    backup(instance, folder)
    with (folder / "featd-backup.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        busy = instance.run("backup", str(folder))
        assert (busy.returncode, "is using it" in busy.stderr) == (1, True)


def test_postgresql_needs_its_programs_and_shows_nobody_the_password(
    tmp_path: Path, images: Path, postgres: PostgreSQL
) -> None:
    name = postgres.create()
    instance = slow(tmp_path / "one", images, postgres.url(name).replace("featd@", "featd:hush@"))
    programs = tmp_path / "bin"
    programs.mkdir()
    path = os.environ["PATH"]
    instance.env["PATH"] = str(programs)
    refused = instance.run("backup", str(tmp_path / "backup"))
    assert refused.returncode == 1
    assert "pg_dump is not installed: install PostgreSQL's client programs" in refused.stderr

    (programs / "pg_dump").write_text(
        f'#!/bin/sh\nPATH="{path}"\necho "$@" >{tmp_path}/seen\necho "$PGPASSWORD" >{tmp_path}/password\n'
        'exec pg_dump "$@"\n'
    )
    (programs / "pg_dump").chmod(0o755)
    backup(instance, tmp_path / "backup")
    assert "hush" not in (tmp_path / "seen").read_text()
    assert (tmp_path / "password").read_text() == "hush\n"

    (programs / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump: error: no such luck' >&2\nexit 1\n")
    failed = instance.run("backup", str(tmp_path / "backup"))
    assert (failed.returncode, "pg_dump failed: pg_dump: error: no such luck" in failed.stderr) == (1, True)
    sqlite = machine(instance, tmp_path / "two", f"sqlite:///{tmp_path}/two.db")
    other = sqlite.run("restore", str(tmp_path / "backup"))
    assert (other.returncode, "a catalog of postgresql" in other.stderr) == (78, True)
    postgres.drop(name)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
def test_a_backup_that_is_killed_at_random_leaves_the_one_before(
    tmp_path: Path, images: Path, undisturbed: Vectors, seed: int
) -> None:
    dice = random.Random(seed)
    instance, folder = slow(tmp_path / "one", images), tmp_path / "backup"
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") >= 10, 60, "work")
        backup(instance, folder)
        least = check_restored(instance, folder, tmp_path / "start")
        for turn in range(5):
            killed = instance.start("backup", str(folder))
            ended = partial(has_more_copies_or_ended, folder, killed)
            wait_for(ended, 60, "a copy of the catalog")  # before that, it only starts
            with contextlib.suppress(subprocess.TimeoutExpired):
                killed.wait(dice.uniform(0.0, 0.08))
            kill_all(killed)
            now = check_restored(instance, folder, tmp_path / f"turn-{turn}")
            assert now >= least
            least = now
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 60, "the end")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    backup(instance, folder)
    assert check_restored(instance, folder, tmp_path / "end") == PHOTOGRAPHS
    check(Instance(tmp_path / "end"), undisturbed)


def has_more_copies_or_ended(folder: Path, process: subprocess.Popen[str]) -> bool:
    return len(list(folder.glob("catalog-*"))) > 1 or process.poll() is not None


def check_restored(instance: Instance, folder: Path, place: Path) -> int:
    """Restore onto an empty machine; how many images are done there."""
    restored = machine(instance, place, f"sqlite:///{place}/featd.db")
    said = restored.run("restore", str(folder))
    assert said.returncode == 0, said.stderr
    return check_promise(restored)["done"]


def test_a_terminal_shows_how_far_it_is(tmp_path: Path, images: Path) -> None:
    instance = slow(tmp_path / "one", images)
    drain(instance)
    screen = Terminal(instance.command("backup", str(tmp_path / "backup")), columns=120)
    try:
        assert screen.end() == 0
        assert b"backing up" in screen.output
        assert "12 shards new" in " ".join(screen.text().split())
    finally:
        screen.close()
