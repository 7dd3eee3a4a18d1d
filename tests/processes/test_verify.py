"""`featd verify` and `--repair` on instances that real processes filled: what disks, people and old backups do to them,
and that every vector is right again after a repair and a drain."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sqlalchemy as sa

from featd.catalog import connect, dump
from featd.shards.store import unknown_folder
from photographs import write_photographs
from running import Instance, drain, kill_all, make_instance, wait_for

PHOTOGRAPHS = 24
Vectors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    made = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=2,
    )
    drain(made)
    return made


def exported(instance: Instance) -> Vectors:
    out = instance.folder / "out"
    result = instance.run("export", str(out), "--force")
    assert result.returncode == 0, result.stderr
    names = (out / "names.txt").read_text().splitlines()
    return dict(zip(names, np.load(out / "features.npy"), strict=True))


def same(one: Vectors, other: Vectors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def shards(instance: Instance) -> list[Path]:
    return sorted((instance.settings.store.path / "shards").rglob("*.h5"))


def verify(instance: Instance, *options: str, code: int = 4, **named: Any) -> dict[str, Any]:
    result = instance.run("verify", "--json", *options, **named)
    assert result.returncode == code, result.stdout + result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at if at >= 0 else len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_one(found: list[Path]) -> int:
    flip(found[1])
    return 1


def truncate_one(found: list[Path]) -> int:
    os.truncate(found[0], found[0].stat().st_size - 1)
    return 1


def delete_one(found: list[Path]) -> int:
    found[1].unlink()
    return 1


def swap_two(found: list[Path]) -> int:
    one, other = found[0].read_bytes(), found[1].read_bytes()
    found[0].write_bytes(other)
    found[1].write_bytes(one)
    return 2


@pytest.mark.parametrize("harm", [flip_one, truncate_one, delete_one, swap_two])
def test_a_faulty_shard_is_found_and_its_vectors_are_made_again(
    instance: Instance, harm: Callable[[list[Path]], int]
) -> None:
    before = exported(instance)
    assert verify(instance, code=0)["sound"] is True
    count = harm(shards(instance))
    files = set(shards(instance))
    found = verify(instance)
    faults = found["faults"]["shards"]
    kind = "missing" if harm is delete_one else "damaged"
    assert [fault["fault"] for fault in faults] == [kind] * count
    assert sum(fault["images"] for fault in faults) == 2 * count
    assert instance.count("done") == PHOTOGRAPHS, "only a repair changes anything"
    said = instance.run("verify")
    assert (said.returncode, "featd --config" in said.stderr, "verify --repair" in said.stderr) == (
        4,
        True,
        True,
    )
    assert faults[0]["path"] in said.stdout

    options = ("--yes",) if count > 1 else ()
    done = verify(instance, "--repair", *options, code=0)["repaired"]
    assert (done["images"], done["shards"]) == (2 * count, count)
    assert set(shards(instance)) == files, "a repair deletes nothing"
    again = verify(instance, "--repair", code=4 if harm in (flip_one, truncate_one) else 0)
    if harm is swap_two:  # each file is whole, and has the vectors of images that wait for them
        assert (again["repaired"]["adopted"], instance.count("pending")) == (4, 0)
    elif harm is not delete_one:
        (why,) = again["repaired"]["not_adopted"].values()
        assert "damaged" in why or "not a readable HDF5 file" in why
    drain(instance)
    assert verify(instance, code=0)["sound"] is True
    assert same(exported(instance), before)


def test_what_was_made_after_a_backup_is_not_made_twice(instance: Instance, tmp_path: Path) -> None:
    write_photographs(tmp_path / "images" / "more", 16)
    assert instance.run("scan").returncode == 0
    backup(instance)
    known = set(shards(instance))
    drain(instance)
    before = exported(instance)
    new = [path for path in shards(instance) if path not in known]
    restore(instance)
    assert instance.run("db", "restored").returncode == 0
    assert len(verify(instance)["faults"]["unknown"]) == len(new)

    store = instance.settings.store.path
    unknown_folder(store).mkdir(exist_ok=True)
    for path in new[:3]:  # as a janitor moves some of them
        path.rename(unknown_folder(store) / path.name)
    foreign, other = (unknown_folder(store) / f"20260101T000000000000-1-other-{n}.h5" for n in (0, 1))
    for path, attribute in ((foreign, "instance"), (other, "fingerprint")):
        shutil.copyfile(new[-1], path)
        with h5py.File(path, "r+") as file:
            file.attrs[attribute] = "another"
    flip(new[-1], new[-1].read_bytes().index(before_bytes(new[-1])))

    done = verify(instance, "--repair")["repaired"]
    damaged = str(new[-1].relative_to(store))
    assert done["adopted_shards"] == len(new) - 1
    assert "another instance" in done["not_adopted"][f"unknown/{foreign.name}"]
    assert "another fingerprint" in done["not_adopted"][f"unknown/{other.name}"]
    assert "damaged" in done["not_adopted"][damaged]
    assert instance.count("done") == PHOTOGRAPHS + done["adopted"]
    drain(instance)
    assert verify(instance, code=0)["sound"] is True
    assert same(exported(instance), before)
    assert len(shards(instance)) == len(known) + len(new), "one shard was made again, no other"


def test_a_repair_beside_a_running_featd(instance: Instance) -> None:
    before = exported(instance)
    process = instance.start("run")
    try:
        wait_for(lambda: instance.live_workers(), 60, "a worker")
        shards(instance)[2].unlink()
        flip(shards(instance)[4])
        assert verify(instance, "--repair", "--yes", code=0)["repaired"]["images"] == 4
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 60, "the vectors")
        wait_for(lambda: not verify_faults(instance), 60, "a sound store")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    drain(instance)
    assert verify(instance, code=0)["sound"] is True
    assert same(exported(instance), before)


def test_a_running_featd_finds_a_damaged_shard_by_itself(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 6)
    days = 2.0 / 86_400
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        workers__devices=["cpu"],
        store__shard_rows=2,
        store__verify_days=days,
    )
    drain(instance)
    bad = shards(instance)[1]
    flip(bad)
    process = instance.start("run")
    try:
        wait_for(lambda: instance.status()["faulty_shards"], 60, "what the slow round finds")
        place = str(bad.relative_to(instance.settings.store.path))
        assert instance.status()["faulty_shards"] == {place: "damaged"}
        assert any(
            "featd verify --repair" in line and place in line for line in instance.status()["warnings"]
        )
        assert verify(instance, "--repair", "--yes", code=0)["repaired"]["images"] == 2
        wait_for(lambda: instance.count("done") == 6, 60, "the vectors")
        assert instance.status()["faulty_shards"] == {}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    assert "verify_fault" in (instance.folder / "stderr").read_text()


def verify_faults(instance: Instance) -> dict[str, Any]:
    """What is found; the janitor moves what is left of a lost shard away at its next look."""
    found = json.loads(instance.run("verify", "--json").stdout)["faults"]
    return {kind: what for kind, what in found.items() if what and kind != "unknown"}


def before_bytes(path: Path) -> bytes:
    """Some bytes of a shard's first vector."""
    with h5py.File(path) as file:
        return file["feats"][0].tobytes()[:64]  # type: ignore[no-any-return]


def backup(instance: Instance) -> None:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    dump.dump(catalog, instance.folder / "old")
    catalog.dispose()


def restore(instance: Instance) -> None:
    """Put the backup in the place of the catalog."""
    url = instance.settings.catalog.url
    catalog = connect.open_catalog(url)
    if url.startswith("sqlite"):
        for left in instance.folder.parent.rglob("featd.db*"):
            left.unlink()
    else:
        with catalog.begin() as conn:
            conn.execute(sa.text("DROP SCHEMA public CASCADE"))
            conn.execute(sa.text("CREATE SCHEMA public"))
    dump.load(catalog, instance.folder / "old")
    catalog.dispose()
