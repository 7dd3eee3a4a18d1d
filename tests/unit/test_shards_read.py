"""Shards made by an enemy, or by a failing disk."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from featd.shards.checksum import checksum
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.shards.write import ShardWriter
from featd.states import ClaimedImage

COUNT = 20


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    name = ShardName(datetime(2026, 11, 24, tzinfo=UTC), 1, "t", 0)
    writer = ShardWriter(tmp_path, name, {"fc7": 4}, attributes={"spec": "{}", "engine": "none"})
    images = [ClaimedImage(at, "/r", f"{at}.jpg", 1, 1, 1) for at in range(COUNT)]
    vectors = np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 4)
    writer.append(images, ["xxh3_128:0"] * COUNT, {"fc7": vectors})
    return tmp_path / writer.seal().path


def replace(name: str, make: Callable[[h5py.File, Path], None]) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, folder: Path) -> None:
        del file[name]
        make(file, folder)

    return change


def external_link(file: h5py.File, folder: Path) -> None:
    file["feats"] = h5py.ExternalLink("/etc/other.h5", "/x")


def external_link_as_group(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["fc7"] = np.zeros((COUNT, 4), np.float32)
    file["blobs"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def soft_link(file: h5py.File, folder: Path) -> None:
    file["feats"] = h5py.SoftLink("/blobs/fc7")


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("names", (COUNT,), "S16", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((COUNT,), np.int64)
    layout[:] = h5py.VirtualSource(str(folder / "missing.h5"), "x", (COUNT,))
    file.create_virtual_dataset("image_id", layout)


def bomb(file: h5py.File, folder: Path) -> None:
    file.create_dataset("image_id", (1 << 27,), np.int64)


def chunked_bomb(file: h5py.File, folder: Path) -> None:
    file.create_dataset("image_id", (1 << 31,), np.int64, chunks=(1 << 16,), compression="gzip")


def huge_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset(
        "image_id", (COUNT,), np.int64, maxshape=(None,), chunks=(1 << 27,), compression="gzip"
    )


def strange_filter(file: h5py.File, folder: Path) -> None:
    file.create_dataset("image_id", data=np.arange(COUNT), chunks=True, compression="lzf")


def too_few(file: h5py.File, folder: Path) -> None:
    file["version"] = np.zeros(COUNT - 1, np.int32)


def other_feats(file: h5py.File, folder: Path) -> None:
    file["feats"] = np.zeros((COUNT, 4), np.float32)


def numbers_for_names(file: h5py.File, folder: Path) -> None:
    file["names"] = np.zeros(COUNT)


def nothing(file: h5py.File, folder: Path) -> None:
    pass


def other_format(file: h5py.File, folder: Path) -> None:
    file.attrs["format"] = 2


def no_json(file: h5py.File, folder: Path) -> None:
    file.attrs["blobs"] = "{"


def unused_link(file: h5py.File, folder: Path) -> None:
    file.create_group("more/deep")["x"] = h5py.ExternalLink("/etc/x", "/")


HOSTILE = {
    "external link": (replace("feats", external_link), "link to somewhere else"),
    "external link as a group": (replace("blobs", external_link_as_group), "link to somewhere else"),
    "soft link": (replace("feats", soft_link), "link to somewhere else"),
    "unused external link": (unused_link, "link to somewhere else"),
    "external storage": (replace("names", external_storage), "other files"),
    "virtual dataset": (replace("image_id", virtual), "other files"),
    "declares 1 GiB": (replace("image_id", bomb), "declares"),
    "declares 16 GiB, chunked": (replace("image_id", chunked_bomb), "declares"),
    "a chunk of 1 GiB": (replace("image_id", huge_chunk), "chunks"),
    "unknown filter": (replace("image_id", strange_filter), "filters"),
    "rows disagree": (replace("version", too_few), "rows"),
    "other feats": (replace("feats", other_feats), "not the dataset"),
    "names are numbers": (replace("names", numbers_for_names), "/names is"),
    "no names": (replace("names", nothing), "no dataset /names"),
    "other format": (other_format, "format 2"),
    "blobs is no JSON": (no_json, "damaged"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_points_elsewhere_or_lies_is_refused(shard: Path, attack: str) -> None:
    change, said = HOSTILE[attack]
    with h5py.File(shard, "r+") as file:
        change(file, shard.parent)
    with pytest.raises(ShardError, match=said) as caught:
        ShardReader(shard)
    assert str(shard) in str(caught.value)


def test_cut_and_flipped_files_never_pass_the_checksum(shard: Path) -> None:
    good = shard.read_bytes()
    right = checksum(shard)
    for at in range(0, len(good), max(len(good) // 60, 1)):
        shard.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert checksum(shard) != right
        shard.write_bytes(good[:at])
        assert checksum(shard) != right
        with pytest.raises(ShardError):
            ShardReader(shard)
    shard.write_bytes(good)
    assert checksum(shard) == right


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ShardReader(tmp_path / "none.h5")


def test_rows_and_keys(shard: Path) -> None:
    with ShardReader(shard) as reader:
        assert (reader.rows, reader.blobs) == (COUNT, {"fc7": 4})
        assert reader.attributes["spec"] == "{}"
        rows = np.array([0, 3, 19])
        assert reader.read("fc7", rows)[:, 0].tolist() == [0, 12, 76]
        assert reader.keys(rows)[0].tolist() == [0, 3, 19]
        assert reader.read("fc7", np.array([], int)).shape == (0, 4)
        assert reader.names()[3] == b"3.jpg"
        assert reader.roots()[0] == b"/r"
        assert reader.contents()[0] == "xxh3_128:0"
        for wrong in ([3, 1], [20], [-1]):
            with pytest.raises(ShardError, match="rows"):
                reader.read("fc7", np.array(wrong))
        with pytest.raises(ShardError, match="no blob 'fc8'"):
            reader.read("fc8", rows)
