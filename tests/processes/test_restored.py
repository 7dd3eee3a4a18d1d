"""A catalog or a store that came from a backup, and a store that was copied: refused with the way out, and no file and
no image is lost on it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from photographs import write_photographs
from postgres import PostgreSQL
from running import Instance, check_promise, drain, kill_all, make_instance, wait_for

PHOTOGRAPHS = 60


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    (tmp_path / "images").mkdir()
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=5,
    )


def backup(instance: Instance, name: str) -> None:
    """As the documentation has it, while featd runs."""
    source = sqlite3.connect(instance.folder / "featd.db")
    target = sqlite3.connect(instance.folder / name)
    source.backup(target)
    source.close()
    target.close()


def restore(instance: Instance, name: str) -> None:
    for left in instance.folder.glob("featd.db-*"):
        left.unlink()
    shutil.copyfile(instance.folder / name, instance.folder / "featd.db")


def shards(instance: Instance) -> set[str]:
    return {path.name for path in (instance.settings.store.path / "shards").rglob("*.h5")}


def stop(instance: Instance, done: int) -> None:
    """Run until so many are done; a backup is made half way, and one at the end. The other photographs arrive when
    featd has stopped."""
    images = instance.folder.parent / "images"
    process = instance.start("run")
    try:
        write_photographs(images, done // 2)
        wait_for(lambda: instance.count("done") == done // 2, 60, "half of it")
        backup(instance, "backup.db")
        write_photographs(images, done)
        wait_for(lambda: instance.count("done") == done, 60, "work")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    backup(instance, "newer.db")
    write_photographs(images, PHOTOGRAPHS)


def test_a_restored_catalog_moves_nothing_until_that_is_said(instance: Instance) -> None:
    stop(instance, 40)
    before = shards(instance)
    restore(instance, "backup.db")
    for command in (["run"], ["run", "--drain"]):
        refused = instance.run(*command)
        assert refused.returncode == 78
        assert "restored from a backup" in refused.stderr
        assert "db restored`" in refused.stderr
    assert shards(instance) == before

    restore(instance, "newer.db")  # the newer one was there after all
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    assert before <= shards(instance)


def test_what_a_restored_catalog_does_not_know_is_done_again_and_kept_aside(instance: Instance) -> None:
    stop(instance, 40)
    before = shards(instance)
    restore(instance, "backup.db")
    said = instance.run("db", "restored")
    assert said.returncode == 0, said.stderr
    assert shards(instance) == before, "the command moves nothing"
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    aside = {path.name for path in (instance.settings.store.path / "unknown").iterdir()}
    assert aside == before - shards(instance) != set()

    restore(instance, "newer.db")  # back again: what was moved away comes back
    assert instance.run("run", "--drain").returncode == 78
    assert instance.run("db", "restored").returncode == 0
    drain(instance)
    assert before <= shards(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_copied_store_cannot_be_used_beside_the_first_nor_the_first_after_it(instance: Instance) -> None:
    store = instance.settings.store.path
    copy = instance.folder / "copy"
    write_photographs(instance.folder.parent / "images", PHOTOGRAPHS)
    text = instance.config.read_text()
    other = text.replace("[store]", f'[store]\npath = "{copy}"')
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") > 0, 60, "work")
        # What is not complete yet may go away while it is copied.
        shutil.copytree(store, copy, ignore=shutil.ignore_patterns("*.part", "run"))
        instance.config.write_text(other)
        refused = instance.run("run", "--drain")
        assert refused.returncode == 1
        assert "one of the two stores is a copy" in refused.stderr
        busy = instance.run("db", "restored")
        assert (busy.returncode, "is a copy" in busy.stderr) == (1, True)
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 60, "an undisturbed end")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    instance.config.write_text(text)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}

    shutil.rmtree(copy)
    shutil.copytree(store, copy)  # as the documentation moves a store
    instance.config.write_text(other)
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    instance.config.write_text(text)
    for command in (["run", "--drain"], ["export", str(instance.folder / "out")]):
        left = instance.run(*command)
        assert (left.returncode, "left behind" in left.stderr) == (78, True), left.stderr
    assert "left behind" in " ".join(
        instance.run("status").stdout.split()
    )  # it is wrapped, wherever the path ends


def test_another_host_joins_with_the_same_store_and_not_with_a_complete_copy(
    tmp_path: Path, postgres: PostgreSQL
) -> None:
    write_photographs(tmp_path / "images", 8)
    database = postgres.create()
    url = postgres.url(database)
    keys = {"workers__devices": ["cpu"], "workers__decoders": 1, "workers__lease_seconds": 6.0}
    first = replace(make_instance(tmp_path / "one", tmp_path / "images", url, **keys), host="one")
    second = Instance(tmp_path / "two", host="two")
    second.folder.mkdir()
    store = first.settings.store.path
    text = first.config.read_text()

    def name_store(path: Path) -> None:
        second.config.write_text(text.replace("[store]", f'[store]\npath = "{path}"'))

    process = first.start("run")
    try:
        wait_for(lambda: first.count("done") == 8, 60, "an idle host")
        shutil.copytree(store, second.folder / "copy")
        name_store(second.folder / "copy")
        refused = second.run("run", "--drain")
        assert refused.returncode == 75
        assert "workers of one are running" in refused.stderr
        write_photographs(tmp_path / "images", 20)
        name_store(store)
        joined = second.run("run", "--drain")
        assert joined.returncode == 0, joined.stderr
        wait_for(lambda: first.count("done") == 20, 60, "the end")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert check_promise(first) == {"done": 20}
    finally:
        kill_all(process)
        postgres.drop(database)
