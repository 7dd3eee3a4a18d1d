"""Writing and reading one shard: the format, the order of durability, disks that fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featd.errors import ConfigError
from featd.paths import from_catalog, to_catalog
from featd.shards import atomic
from featd.shards import write as write_module
from featd.shards.checksum import checksum
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.shards.write import ShardWriter, fits
from featd.states import ClaimedImage

NAME = ShardName(datetime(2026, 11, 24, 22, 55, 1, 123456, tzinfo=UTC), 7, "ab12", 3)
ATTRIBUTES = {"instance": "i", "fingerprint": "f", "spec": "{}", "engine": "onnxruntime"}


def rows_of(count: int, first: int = 0) -> tuple[list[ClaimedImage], list[str]]:
    """Images and the hashes of their contents."""
    ids = range(first, first + count)
    images = [ClaimedImage(at, "/data/images", f"a/{at}.jpg", 1, 1, 1) for at in ids]
    return images, [f"xxh3_128:{at:032x}" for at in ids]


def vectors_of(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def writer(store: Path, blobs: dict[str, int] | None = None, **options: str) -> ShardWriter:
    return ShardWriter(store, NAME, blobs or {"fc7": 8}, attributes=ATTRIBUTES, **options)


def test_plain_h5py_reads_a_shard(tmp_path: Path) -> None:
    blobs = {"pool5/7x7_s1": 16, "fc7": 8}
    vectors = {"pool5/7x7_s1": vectors_of(5, 16), "fc7": vectors_of(5, 8, 1)}
    shard = writer(tmp_path, blobs)
    assert shard.append(*rows_of(5), vectors) == 0
    sealed = shard.seal()

    path = tmp_path / sealed.path
    assert sealed.path == "shards/2026-11-24/20261124T225501123456-7-ab12-3.h5"
    assert (sealed.rows, sealed.bytes, sealed.checksum) == (5, path.stat().st_size, checksum(path))
    with h5py.File(path, "r") as file:
        assert file.id.get_create_plist().get_version()[0] <= 2
        assert np.array_equal(file["feats"][...], vectors["pool5/7x7_s1"])
        assert file["feats"] == file["blobs/pool5/7x7_s1"]
        assert isinstance(file.get("feats", getlink=True), h5py.HardLink)
        assert np.array_equal(file["blobs/fc7"][...], vectors["fc7"])
        assert file["names"][...].tolist() == [f"a/{at}.jpg".encode() for at in range(5)]
        assert file["names"].dtype.metadata is not None
        assert h5py.check_string_dtype(file["names"].dtype).encoding == "utf-8"
        assert (file["image_id"].dtype, file["version"].dtype) == (np.int64, np.int32)
        assert file["root"].asstr()[0] == "/data/images"
        assert file["content"].asstr()[1] == f"xxh3_128:{1:032x}"
        assert file.attrs["format"] == 1
        assert json.loads(file.attrs["blobs"]) == ["pool5/7x7_s1", "fc7"]
        assert file.attrs["created_at"] == "2026-11-24T22:55:01.123456+00:00"
        assert {"instance", "fingerprint", "spec", "engine", "featd_version"} <= set(file.attrs)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_a_shard(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    shard.append(*rows_of(300), {"fc7": vectors_of(300, 8)})
    path = tmp_path / shard.seal().path
    dump = subprocess.run(
        ["h5dump", "-d", "/names", "-s", "299", "-c", "1", path], capture_output=True, text=True, check=True
    )
    assert '"a/299.jpg"' in dump.stdout
    listing = subprocess.run(["h5dump", "-B", "-H", path], capture_output=True, text=True, check=True).stdout
    assert "SUPERBLOCK_VERSION 0" in listing
    assert 'HARDLINK "/blobs/fc7"' in listing or 'HARDLINK "/feats"' in listing


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_every_row_comes_back(tmp_path: Path, count: int, dtype: str, compression: str) -> None:
    vectors = vectors_of(count, 3)
    shard = writer(tmp_path, {"x": 3}, dtype=dtype, compression=compression)
    shard.append(*rows_of(count), {"x": vectors})
    with ShardReader(tmp_path / shard.seal().path) as reader:
        everything = reader.read("x", np.arange(count))
        assert everything.dtype == np.dtype(dtype)
        assert np.array_equal(everything, vectors.astype(dtype))
        picked = np.unique(np.linspace(0, count - 1, 7).astype(int))
        assert np.array_equal(reader.read("x", picked), vectors.astype(dtype)[picked])
        assert reader.keys()[0].tolist() == list(range(count))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.integers(0, 300), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_batches_of_any_size_stay_aligned(tmp_path: Path, batches: list[int], seed: int) -> None:
    shutil.rmtree(tmp_path / "shards", ignore_errors=True)
    shard = writer(tmp_path, {"x": 5, "y": 2})
    total = 0
    for size in batches:
        values = {"x": vectors_of(size, 5, seed + total), "y": np.full((size, 2), total, np.float32)}
        assert shard.append(*rows_of(size, total), values) == total
        total += size
    sealed = shard.seal()
    assert sealed.rows == total
    with ShardReader(tmp_path / sealed.path) as reader:
        ids, versions = reader.keys()
        assert ids.tolist() == list(range(total))
        assert (versions == 1).all()
        assert reader.names() == [f"a/{at}.jpg".encode() for at in range(total)]
        at = 0
        for size in batches:
            chosen = np.arange(at, at + size)
            assert np.array_equal(reader.read("x", chosen), vectors_of(size, 5, seed + at))
            assert (reader.read("y", chosen) == at).all()
            at += size


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.lists(
        st.binary(min_size=1, max_size=80).filter(lambda name: b"\0" not in name), min_size=1, max_size=5
    )
)
def test_names_are_the_raw_bytes(tmp_path: Path, raw: list[bytes]) -> None:
    shutil.rmtree(tmp_path / "shards", ignore_errors=True)
    shard = writer(tmp_path, {"x": 1})
    images = [ClaimedImage(at, "/r", to_catalog(name), 1, 1, 1) for at, name in enumerate(raw)]
    assert [from_catalog(image.path) for image in images] == raw
    shard.append(images, ["c"] * len(raw), {"x": np.zeros((len(raw), 1), np.float32)})
    path = tmp_path / shard.seal().path
    with h5py.File(path, "r") as file:
        assert file["names"][...].tolist() == raw


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_flipped_bit_in_a_number_of_a_large_shard_is_noticed(tmp_path: Path, compression: str) -> None:
    blobs = {"x": 64, "y/z": 3}
    shard = writer(tmp_path, blobs, compression=compression)
    shard.append(*rows_of(600), {"x": vectors_of(600, 64), "y/z": vectors_of(600, 3, 1)})
    path = tmp_path / shard.seal().path
    whole = path.read_bytes()
    with h5py.File(path, "r") as file:
        places = {
            name: (file[name].id.get_chunk_info(0).byte_offset, file[name].fletcher32)
            for name in ("blobs/x", "blobs/y/z", "image_id", "version")
        }
    for name, (at, checked) in places.items():
        assert checked
        path.write_bytes(whole[: at + 40] + bytes([whole[at + 40] ^ 4]) + whole[at + 41 :])
        with ShardReader(path) as reader:
            reads = {"image_id": reader.keys, "version": reader.keys}
            blob = name.removeprefix("blobs/")
            read = reads.get(name, partial(reader.read, blob, np.arange(600)))
            with pytest.raises(ShardError, match=r"damaged.*featd verify") as caught:
                read()
        assert str(path) in str(caught.value)


def test_the_numbers_of_a_small_shard_are_contiguous(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    shard.append(*rows_of(255), {"fc7": vectors_of(255, 8)})
    sealed = shard.seal()
    with h5py.File(tmp_path / sealed.path, "r") as file:
        assert [file[name].chunks for name in ("feats", "image_id", "version")] == [None] * 3
    assert sealed.bytes < 100_000


@pytest.mark.parametrize("count", [3, 600])
def test_digests_tell_any_value_that_is_not_as_it_was_sealed(tmp_path: Path, count: int) -> None:
    blobs = {"x": 16, "y/z": 3}
    shard = writer(tmp_path, blobs)
    shard.append(*rows_of(count), {"x": vectors_of(count, 16), "y/z": vectors_of(count, 3, 1)})
    path = tmp_path / shard.seal().path
    whole = path.read_bytes()
    with ShardReader(path) as reader:
        reader.check_digests()
    for name in ("blobs/x", "blobs/y/z", "image_id", "version", "names", "root", "content"):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            file[name][count // 2] = b"other" if file[name].dtype.kind == "O" else 77
        with ShardReader(path) as reader, pytest.raises(ShardError, match=f"the values of {name} are not"):
            reader.check_digests()
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file.attrs["digests"]
    with ShardReader(path) as reader, pytest.raises(ShardError, match="earlier featd"):
        reader.check_digests()


def test_a_part_is_no_shard_until_sealed(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    shard.append(*rows_of(2), {"fc7": vectors_of(2, 8)})
    folder = tmp_path / "shards" / "2026-11-24"
    assert [file.name for file in folder.iterdir()] == [NAME.file_name + ".part"]
    assert ShardName.parse(NAME.file_name + ".part") is None
    assert ShardName.parse_part(NAME.file_name + ".part") == NAME
    shard.seal()
    assert [file.name for file in folder.iterdir()] == [NAME.file_name]
    with pytest.raises(ValueError, match="sealed"):
        shard.append(*rows_of(1), {"fc7": vectors_of(1, 8)})


def test_discard_removes_its_own_part_only(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    other = tmp_path / "shards" / "2026-11-24" / "other.h5.part"
    other.write_bytes(b"not mine")
    shard.append(*rows_of(600), {"fc7": vectors_of(600, 8)})
    shard.discard()
    shard.discard()
    assert [file.name for file in other.parent.iterdir()] == ["other.h5.part"]


def test_nobody_else_may_write_the_same_shard(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    with pytest.raises(FileExistsError):
        writer(tmp_path)
    shard.discard()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, write = os.pwrite, os.write
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:777], at))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[:7]))
    shard = writer(tmp_path)
    vectors = vectors_of(700, 8)
    shard.append(*rows_of(700), {"fc7": vectors})
    with ShardReader(tmp_path / shard.seal().path) as reader:
        assert np.array_equal(reader.read("fc7", np.arange(700)), vectors)
    atomic.write_atomically(tmp_path / "x", b"a longer text")
    assert (tmp_path / "x").read_bytes() == b"a longer text"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fsyncs and renames so far, with the names of their files."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(fd: int) -> None:
        done.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def note_rename(self: Path, target: Path) -> Path:
        done.append("rename " + self.name)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    return done


def test_order_of_durability(tmp_path: Path, done: list[str]) -> None:
    """File fsynced, then renamed, then its folder fsynced; a new day's folder in its parent, before all."""
    shard = writer(tmp_path)
    shard.append(*rows_of(2), {"fc7": vectors_of(2, 8)})
    shard.seal()
    part = NAME.file_name + ".part"
    assert done == [
        f"fsync {tmp_path.name}",
        "fsync shards",
        f"fsync {part}",
        f"rename {part}",
        "fsync 2026-11-24",
    ]


def test_order_of_durability_of_small_and_of_moved_files(tmp_path: Path, done: list[str]) -> None:
    (tmp_path / "from").mkdir()
    atomic.write_atomically(tmp_path / "from" / "x", b"x")
    assert done == ["fsync x.part", "rename x.part", "fsync from"]
    done.clear()
    atomic.move_file(tmp_path / "from" / "x", tmp_path / "to" / "x")
    assert done == [f"fsync {tmp_path.name}", "rename x", "fsync to", "fsync from"]


def test_an_fsync_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = writer(tmp_path)
    shard.append(*rows_of(2), {"fc7": vectors_of(2, 8)})
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        shard.seal()
    assert caught.value.errno == errno.EIO
    assert len(calls) == 1
    assert list((tmp_path / "shards" / "2026-11-24").iterdir()) == []


FULL = """
import errno, resource, sys, os
from pathlib import Path
sys.path.insert(0, {here!r})
import test_shards_write as t
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
before = len(os.listdir("/proc/self/fd"))
for attempt in range(3):
    shard = t.writer(Path({store!r}), {{"x": 512}})
    try:
        for at in range({appends}):
            shard.append(*t.rows_of(100, at * 100), {{"x": t.vectors_of(100, 512)}})
        shard.seal()
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    else:
        raise SystemExit("it fitted")
assert len(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.parametrize("appends", [2, 9])  # the limit is met at seal, or in append
def test_a_file_that_cannot_grow_is_a_clean_error(tmp_path: Path, appends: int) -> None:
    script = FULL.format(here=str(Path(__file__).parent), store=str(tmp_path), appends=appends)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "shards" / "2026-11-24").iterdir()) == []


def write_big(store: Path) -> None:
    shard = writer(store, {"x": 4096})
    shard.append(*rows_of(300), {"x": vectors_of(300, 4096)})
    shard.seal()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("options", ["size=1m", "nr_inodes=4"])
def test_a_full_disk_surfaces_as_enospc_and_recovers(tmp_path: Path, options: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        fill = small / "fill"
        fill.write_bytes(b"")  # the last inode there is, where these are few
        with pytest.raises(OSError, match="No space left") as caught:
            write_big(small)
        assert caught.value.errno == errno.ENOSPC
        assert not list(small.rglob("*.part"))
        fill.unlink()
        shard = writer(small, {"x": 8})
        shard.append(*rows_of(3), {"x": vectors_of(3, 8)})
        assert shard.seal().rows == 3
    finally:
        subprocess.run(["umount", small], check=True)


def test_wrong_shapes_add_nothing(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    with pytest.raises(ValueError, match="fc7"):
        shard.append(*rows_of(2), {"fc7": vectors_of(3, 8)})
    with pytest.raises(ValueError, match="holds"):
        shard.append(*rows_of(2), {"fc6": vectors_of(2, 8)})
    assert shard.rows == 0
    shard.discard()


def test_bytes_grow_with_the_payload(tmp_path: Path) -> None:
    shard = writer(tmp_path, {"x": 1000})
    shard.append(*rows_of(10), {"x": vectors_of(10, 1000)})
    assert 40_000 <= shard.bytes <= 42_000
    assert shard.rows == 10
    shard.discard()


def test_float16_tells_what_overflows() -> None:
    vectors = np.array([[1, 65504], [1, 65520], [np.inf, 0], [-7e4, 0], [0, 0]], np.float32)
    assert fits(vectors, "float16").tolist() == [True, False, False, False, True]
    assert fits(vectors, "float32").tolist() == [True, True, False, True, True]


def test_zstd_without_its_plugin_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(write_module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="pip install hdf5plugin"):
        writer(tmp_path, compression="zstd")
    assert not list(tmp_path.iterdir())


def test_write_atomically_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    atomic.write_atomically(target, b"one")
    atomic.write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert [file.name for file in target.parent.iterdir()] == ["file.json"]
