"""A file that was moved or renamed takes the vector of its old name: without decoding and the net, bit for bit, and
only where that vector is certainly right."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sqlalchemy as sa

from featd.catalog import connect, schema
from featd.decoders.pool import DecoderPool
from featd.processes.hands import Hands
from featd.processes.link import ChildLink
from featd.shards.checksum import checksum
from featd.worker.moved import Moved
from photographs import write_photographs
from running import Instance, check_promise, kill_all, live_vectors, make_instance, wait_for
from workers import worker_of

PHOTOGRAPHS = 12
MARK = np.float32(1000.0)

Vectors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    (tmp_path / "images" / "part-0").rename(tmp_path / "images" / "m")
    (tmp_path / "images" / "z").mkdir()
    return tmp_path / "images"


@pytest.fixture
def instance(tmp_path: Path, root: Path, database_url: str) -> Instance:
    """Photographs that are done."""
    made = make_instance(
        tmp_path / "instance",
        root,
        database_url,
        workers__devices=["cpu"],
        workers__batch=4,
        workers__decoders=1,
        store__shard_rows=5,
    )
    drain(made)
    return made


def drain(instance: Instance) -> str:
    result = instance.run("run", "--drain")
    assert result.returncode == 0, result.stderr
    return result.stderr


def vectors(instance: Instance) -> Vectors:
    return {path: vector for (_, path), vector in live_vectors(instance).items()}


def change_shards(instance: Instance, change: Callable[[h5py.File], None]) -> None:
    """Change every shard, and its checksum in the catalog with it."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with catalog.begin() as conn:
        for shard in conn.execute(sa.select(schema.shards)).all():
            path = instance.settings.store.path / shard.path
            with h5py.File(path, "r+") as file:
                change(file)
            statement = sa.update(schema.shards).where(schema.shards.c.id == shard.id)
            conn.execute(statement.values(checksum=checksum(path), bytes=path.stat().st_size))
    catalog.dispose()


def mark(file: h5py.File) -> None:
    """A vector that was copied has the mark; one that was made anew has not."""
    file["feats"][...] += MARK


def copied(log: str) -> int:
    return sum(map(int, re.findall(r"\bcopied=(\d+)", log)))


def renamed(path: str) -> str:
    """The new name comes behind the old one, or before it."""
    for old, new in (("m/", "z/deep/"), ("part-1/", "a/")):
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


def rename(root: Path) -> list[str]:
    """Two folders, and one file in a third; returns the new names."""
    before = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    (root / "m").rename(root / "z" / "deep")
    (root / "part-1").rename(root / "a")
    single = next(path for path in before if path.startswith("part-2/"))
    (root / single).rename(root / "part-2" / "0 renamed.jpg")
    return [renamed(path) for path in before if renamed(path) != path] + ["part-2/0 renamed.jpg"]


def check_renamed(instance: Instance, before: Vectors, new: Sequence[str], single: str) -> None:
    """Every vector is where its file is now, and has the bits and the mark that it had."""
    names = {path: renamed(path) for path in before} | {single: "part-2/0 renamed.jpg"}
    found = vectors(instance)
    assert found.keys() == set(names.values())
    for path, vector in before.items():
        assert np.array_equal(found[names[path]].view(np.uint32), vector.view(np.uint32)), path
    assert all(found[path].min() > MARK / 2 for path in new)
    rows = {row.path: row for row in instance.rows()}
    for path, name in names.items():
        if path != name:
            assert rows[path].state == "gone"
            assert rows[path].shard_id is not None
            assert rows[path].content == rows[name].content
            assert rows[path].shard_id != rows[name].shard_id


def test_what_is_renamed_while_featd_is_stopped_keeps_its_vector(instance: Instance, root: Path) -> None:
    change_shards(instance, mark)
    before = vectors(instance)
    single = min(path for path in before if path.startswith("part-2/"))
    new = rename(root)
    log = drain(instance)
    check_renamed(instance, before, new, single)
    assert copied(log) == len(new)
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "gone": len(new)}

    told = json.loads(instance.run("explain", str(root / new[0]), "--json").stdout)
    assert (told["state"], told["shard_version"], told["shard_fault"]) == ("done", 1, None)
    old = instance.run("explain", str(root / single)).stdout
    assert "gone" in old
    assert "not live" in old
    assert "another file that has its content gets this vector" in old
    status = instance.status()
    assert (status["images"]["done"], status["images"]["gone"]) == (PHOTOGRAPHS, len(new))


def test_what_is_renamed_while_featd_runs_keeps_its_vector(instance: Instance, root: Path) -> None:
    change_shards(instance, mark)
    before = vectors(instance)
    single = min(path for path in before if path.startswith("part-2/"))
    process = instance.start("run")
    try:
        wait_for(lambda: "scan finished" in (instance.folder / "stderr").read_text(), 60, "the first scan")
        wait_for(lambda: instance.live_workers(), 60, "a worker")
        new = rename(root)
        wait_for(lambda: instance.count("gone") == len(new) and instance.count("done") == PHOTOGRAPHS, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    check_renamed(instance, before, new, single)
    assert copied((instance.folder / "stderr").read_text()) == len(new)
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "gone": len(new)}


def test_copies_of_a_file_that_is_gone_get_its_vector_and_other_content_does_not(
    instance: Instance, root: Path
) -> None:
    change_shards(instance, mark)
    before = vectors(instance)
    one, other, *_ = sorted(path for path in before if path.endswith(".jpg"))
    for name in ("new-1.jpg", "new-2.jpg"):
        shutil.copyfile(root / one, root / name)
    data = bytearray((root / other).read_bytes())
    (root / "edited.jpg").write_bytes(data + b"x")
    for path in (one, other):
        (root / path).unlink()
    assert copied(drain(instance)) == 2
    found = vectors(instance)
    for name in ("new-1.jpg", "new-2.jpg"):
        assert np.array_equal(found[name], before[one])
    assert np.array_equal(found["edited.jpg"] + MARK, before[other])
    # The first name again: its own vector, and a file over another one, whose content is known.
    (root / "new-1.jpg").rename(root / one)
    (root / "edited.jpg").unlink()
    (root / "new-2.jpg").rename(root / "part-2" / "over.jpg")
    third = min(path for path in before if path.startswith("part-1/"))
    shutil.copyfile(root / one, root / third)
    drain(instance)
    found = vectors(instance)
    for name in (one, "part-2/over.jpg", third):
        assert np.array_equal(found[name], before[one]), name
    check_promise(instance)


def test_a_root_under_another_path_keeps_its_vectors_once_the_old_one_is_removed(
    instance: Instance, root: Path
) -> None:
    change_shards(instance, mark)
    before = vectors(instance)
    moved = root.rename(root.with_name("elsewhere"))
    instance.config.write_text(instance.config.read_text().replace(str(root), str(moved)))
    assert instance.run("roots", "remove", str(root)).returncode == 0
    assert copied(drain(instance)) == PHOTOGRAPHS
    found = live_vectors(instance)
    assert found.keys() == {(str(moved), path) for path in before}
    assert all(np.array_equal(found[str(moved), path], vector) for path, vector in before.items())


def test_nothing_is_decoded_and_no_net_runs(
    instance: Instance, root: Path, link: ChildLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_shards(instance, mark)
    new = rename(root)
    (root / new[0]).write_bytes((root / new[0]).read_bytes() + b"x")
    assert instance.run("scan").returncode == 0
    seen: list[str] = []
    in_the_net: list[int] = []
    polled, hold = DecoderPool.poll, Hands.hold_forward

    def poll(pool: DecoderPool, timeout_seconds: float) -> Any:
        results = polled(pool, timeout_seconds)
        seen.extend(f"{type(result).__name__} {result.image.path}" for _, result in results)
        return results

    def hold_forward(hands: Hands, image_ids: Sequence[int]) -> None:
        in_the_net.extend(image_ids)
        hold(hands, image_ids)

    monkeypatch.setattr(DecoderPool, "poll", poll)
    monkeypatch.setattr(Hands, "hold_forward", hold_forward)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with worker_of(instance, link) as worker:
        wait_for(lambda: worker.step() or instance.count("done") == PHOTOGRAPHS, 60, "all images")
    assert sorted(seen) == sorted([f"Hashed {path}" for path in new] + [f"Decoded {new[0]}"])
    assert in_the_net == [row.id for row in instance.rows() if row.path == new[0]]


def test_a_first_drain_asks_for_nothing(
    instance: Instance, root: Path, link: ChildLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an image that is gone, no file is read twice and nothing is looked up."""
    write_photographs(root / "more", 5)
    assert instance.run("scan").returncode == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(Moved, "find", lambda *_: 1 // 0)
    with worker_of(instance, link) as worker:
        wait_for(lambda: worker.step() or instance.count("done") == PHOTOGRAPHS + 5, 60, "all images")


@pytest.mark.parametrize("how", ["missing", "flipped", "of another fingerprint"])
def test_what_is_renamed_is_extracted_where_its_shard_is(instance: Instance, root: Path, how: str) -> None:
    before = vectors(instance)
    change_shards(instance, mark)
    if how == "of another fingerprint":
        change_shards(instance, lambda file: file.attrs.modify("fingerprint", "0" * 64))
    for path in (instance.settings.store.path / "shards").rglob("*.h5"):
        if how == "missing":
            path.unlink()
        elif how == "flipped":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    single = min(path for path in before if path.startswith("part-2/"))
    new = rename(root)
    log = drain(instance)
    assert copied(log) == 0
    rows = {row.path: row for row in instance.rows()}
    assert all(rows[path].state == "done" for path in new)
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with connect.reading(catalog) as conn:
        paths = {shard.id: shard.path for shard in conn.execute(sa.select(schema.shards))}
    catalog.dispose()
    for path, vector in before.items():
        name = "part-2/0 renamed.jpg" if path == single else renamed(path)
        if name != path:
            with h5py.File(instance.settings.store.path / paths[rows[name].shard_id]) as file:
                assert np.array_equal(file["feats"][rows[name].shard_row], vector)
    assert ("are extracted again" in log) is (how != "missing")
