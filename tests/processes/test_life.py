"""An image's life over several drains: replaced, touched, deleted, back, repaired; and what people see of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import sqlalchemy as sa

from corpus import write_corpus
from featd.catalog import connect, schema
from photographs import write_photographs
from running import Instance, check_promise, live_vectors, make_instance

PHOTOGRAPHS = 30


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    return tmp_path / "images"


@pytest.fixture
def instance(tmp_path: Path, images: Path, database_url: str) -> Iterator[Instance]:
    return make_instance(
        tmp_path / "instance",
        images,
        database_url,
        workers__devices=["cpu"],
        workers__batch=8,
        store__shard_rows=12,
        retry__backoff_seconds=0.05,
    )


def drain(instance: Instance, code: int = 0) -> None:
    result = instance.run("run", "--drain", plain_user=True)
    assert result.returncode == code, result.stderr


def test_a_replaced_file_gets_a_new_vector_and_a_touched_one_keeps_its_own(
    instance: Instance, images: Path
) -> None:
    drain(instance)
    before = live_vectors(instance)
    rows = instance.status()["shards"]["rows"]
    first, second, third, *_ = sorted(images.rglob("*.jpg"))
    replaced, touched, renamed = (str(path.relative_to(images)) for path in (first, second, third))
    shutil.copyfile(second, first)
    os.utime(second)
    third.rename(third.with_name("renamed.jpg"))
    drain(instance)

    after = live_vectors(instance)
    root = str(images)
    # The same picture in a batch of another size: the last bit may differ.
    np.testing.assert_allclose(after[root, replaced], before[root, touched], rtol=1e-4, atol=1e-6)
    assert not np.allclose(after[root, replaced], before[root, replaced], rtol=1e-2, atol=1e-4)
    assert np.array_equal(after[root, touched], before[root, touched])
    assert (root, renamed) not in after
    by_path = {row.path: row for row in instance.rows()}
    assert by_path[touched].version == 2
    assert by_path[renamed].state == "gone"
    # A forward pass for the replaced and the renamed file, none for the touched one.
    assert instance.status()["shards"]["rows"] == rows + 2
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "gone": 1}


def test_a_deleted_file_that_comes_back_is_done_again_with_its_vector(
    instance: Instance, images: Path
) -> None:
    drain(instance)
    victim = min(images.rglob("*.jpg"))
    aside = images.parent / "aside"
    victim.rename(aside)
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS - 1, "gone": 1}
    aside.rename(victim)
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    assert instance.status()["shards"]["rows"] == PHOTOGRAPHS


def edit_in_place(path: Path, other: Path) -> None:
    """Give a file other content of the same size, and its time back."""
    before = path.stat()
    data = other.read_bytes()[: before.st_size]
    with path.open("r+b") as file:
        file.write(data + bytes(before.st_size - len(data)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_edit_that_keeps_size_and_time_is_seen_by_the_next_drain(instance: Instance, images: Path) -> None:
    drain(instance)
    before, rows = live_vectors(instance), instance.status()["shards"]["rows"]
    small, large, touched, *_ = sorted(images.rglob("*.jpg"), key=lambda path: path.stat().st_size)
    edit_in_place(large, small)
    touched.chmod(0o644 if touched.stat().st_mode & 0o777 != 0o644 else 0o664)
    drain(instance)
    after = live_vectors(instance)
    changed = {
        path for (_, path), vector in after.items() if not np.array_equal(vector, before[str(images), path])
    }
    assert changed == {str(large.relative_to(images))}
    assert instance.status()["shards"]["rows"] == rows + 1, "the other was only read"
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def shard_id(instance: Instance, name: str) -> int:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            return int(
                conn.execute(sa.select(schema.shards.c.id).where(schema.shards.c.name == name)).scalar_one()
            )
    finally:
        catalog.dispose()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_vectors_of_a_lost_shard_are_made_again(instance: Instance, images: Path, how: str) -> None:
    drain(instance)
    shard = min((instance.settings.store.path / "shards").rglob("*.h5"))
    if how == "missing":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 0x40
        shard.write_bytes(data)
    assert len(list((instance.settings.store.path / "shards").rglob("*.h5"))) >= 3 - (how == "missing")
    lost = [row.path for row in instance.rows() if row.shard_id == shard_id(instance, shard.name)]
    export = ["export", str(images.parent / "out")]
    refused = instance.run(*export, plain_user=True)
    assert (refused.returncode, how in refused.stderr, shard.name in refused.stderr) == (1, True, True)
    told = instance.run("explain", str(images / lost[0]), plain_user=True).stdout
    assert f"this file is {how}" in told
    again = instance.run("enqueue", "--force", str(images), plain_user=True)
    assert again.stdout == f"{PHOTOGRAPHS} images enqueued\n"
    result = instance.run("run", "--drain", plain_user=True)
    assert result.returncode == 0
    assert result.stderr.count("shard_faulty") == 1
    shard.unlink(missing_ok=True)  # nothing names it any more
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    assert instance.status()["shards"]["rows"] == PHOTOGRAPHS, "the others kept their vectors"
    assert instance.run(*export, plain_user=True).returncode == 0


def test_repaired_files_become_done_by_retry_failed(instance: Instance, images: Path) -> None:
    expected = write_corpus(images / "odd", images.parent / "outside.jpg")
    drain(instance, 4)
    failed = {name for name, fate in expected.items() if fate.state == "failed"}
    assert instance.count("failed") == len(failed)
    whole = (images / "odd" / "whole.jpg").read_bytes()
    for name in failed:
        path = images / "odd" / os.fsdecode(name)
        found = path.stat()
        path.chmod(0o644)
        if name == b"denied.jpg":
            continue  # its content was right all along
        path.write_bytes(whole)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    dry = instance.run("retry-failed", "--dry-run")
    assert dry.returncode == 0
    assert instance.count("failed") == len(failed)
    one = instance.run("retry-failed", "--kind", "read.denied")
    assert one.returncode == 0
    assert instance.count("failed") == len(failed) - 1
    assert instance.run("retry-failed").returncode == 0
    drain(instance)
    states = check_promise(instance)
    assert states["failed"] == 0
    assert states["done"] == PHOTOGRAPHS + sum(fate.state is not None for fate in expected.values())


def test_an_offline_root_is_named_and_costs_nothing(tmp_path: Path, images: Path, database_url: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "x.png"), np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3))
    instance = make_instance(tmp_path / "instance", [images, other], database_url, workers__devices=["cpu"])
    assert instance.run("scan").returncode == 0
    other.rename(tmp_path / "unmounted")
    result = instance.run("run", "--drain")
    assert result.returncode == 1
    assert f"{other} (missing)" in result.stderr
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "pending": 1}
    (tmp_path / "unmounted").rename(other)
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 1}


def test_a_configuration_that_would_make_other_vectors_is_refused(instance: Instance) -> None:
    drain(instance)
    text = instance.config.read_text()
    instance.config.write_text(text + '\n[preprocess]\ninterpolation = "cubic"\n')
    result = instance.run("run", "--drain")
    assert result.returncode == 78
    assert "preprocess.interpolation" in result.stderr
    assert "featd init" in result.stderr
    assert "Traceback" not in result.stderr
    instance.config.write_text(text)
    drain(instance)


YEAR_SECONDS = 31_556_952


@pytest.mark.parametrize("years", [411, 300, -60], ids=["2381", "2270", "1910"])
def test_files_dated_beyond_what_a_database_holds_are_done_like_others(
    instance: Instance, images: Path, years: int
) -> None:
    odd, *_ = sorted(images.rglob("*.jpg"))
    when_ns = years * YEAR_SECONDS * 10**9
    os.utime(odd, ns=(when_ns, when_ns))
    if abs(odd.stat().st_mtime_ns - when_ns) > 10**9:
        pytest.skip("this file system does not hold such a date")
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    name = str(odd.relative_to(images))
    (row,) = [row for row in instance.rows() if row.path == name]
    assert row.mtime_ns == max(-(2**63), min(when_ns, 2**63 - 1))
    shards = instance.status()["shards"]["count"]
    drain(instance)  # nothing has changed
    assert instance.status()["shards"]["count"] == shards
    result = instance.run("explain", str(odd))
    assert result.returncode == 0, result.stderr
    assert instance.run("enqueue", str(odd)).returncode == 0
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
