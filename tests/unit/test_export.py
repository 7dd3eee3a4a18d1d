"""The export: every live vector once, under its own name, in order, whatever the shards look like."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from featd.catalog import connect, enqueue, feed, live
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images, shards
from featd.catalog.settle import Settlement
from featd.errors import FeatdError, ModelError, NothingMatchedError, StoreUnavailableError, TokenError
from featd.export import export, npy
from featd.export.export import Wanted
from featd.reader.vectors import Kind
from featd.shards.checksum import checksum
from featd.shards.layout import ShardError
from filled import Filled


def names_of(out: Path) -> list[str]:
    return (out / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]


def record_checksum(filled: Filled, shard: Path) -> None:
    """As if the shard had been sealed as it is now."""
    update = sa.update(shards).where(shards.c.name == shard.name).values(checksum=checksum(shard))
    connect.transact(filled.catalog, lambda conn: conn.execute(update))


def ids_by_path(filled: Filled) -> dict[str, int]:
    with connect.reading(filled.catalog) as conn:
        return dict(conn.execute(sa.select(images.c.path, images.c.id)).all())


def test_npy_holds_every_live_vector_in_order_of_image(filled: Filled, tmp_path: Path) -> None:
    filled.done(["b.jpg", "a.jpg", "ünï/ö.png"])
    filled.done(["c\\xff.jpg", "d\\\\.jpg", "e\\x0a.jpg"])
    filled.enqueue(["waiting.jpg"])
    exported = export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    features = np.load(tmp_path / "out" / "features.npy", mmap_mode="r")
    names = names_of(tmp_path / "out")
    assert (exported.rows, exported.blobs) == (6, {"fc7": Kind(5, np.dtype(np.float32))})
    assert features.shape == (6, 5)
    assert features.dtype == np.float32
    ids = ids_by_path(filled)
    assert sorted(names) == sorted(set(ids) - {"waiting.jpg"})
    assert [ids[name] for name in names] == sorted(ids[name] for name in names)
    np.testing.assert_array_equal(features, filled.vectors([ids[name] for name in names], 5))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "features.npy", "ids.npy", "names.txt", "roots.txt", "token.txt", "versions.npy",
    ]  # fmt: skip


def test_hdf5_holds_feats_and_names_as_raw_bytes(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b\\xff.jpg"])
    out = tmp_path / "vectors.h5"
    export.to_hdf5(filled.catalog, filled.store, out, Wanted(["pool5/7x7_s1"]))
    ids = ids_by_path(filled)
    with h5py.File(out) as file:
        assert file["names"][:].tolist() == [b"a.jpg", b"b\xff.jpg"]
        assert file["root"][0].decode() == str(filled.roots[0])
        assert file["image_id"][:].tolist() == [ids["a.jpg"], ids["b\\xff.jpg"]]
        np.testing.assert_array_equal(file["feats"][:], filled.vectors(sorted(ids.values()), 3))
        assert file.attrs["instance"] == filled.instance
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_small_chunks_give_the_same_file(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 60, 7):
        filled.done([f"{at:02}.jpg" for at in range(start, start + 7)])
    export.to_npy(filled.catalog, filled.store, tmp_path / "whole")
    monkeypatch.setattr(export, "CHUNK_BYTES", 60)  # three vectors
    export.to_npy(filled.catalog, filled.store, tmp_path / "pieces")
    export.to_hdf5(filled.catalog, filled.store, tmp_path / "pieces.h5")
    for name in ("features.npy", "names.txt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()
    with h5py.File(tmp_path / "pieces.h5") as file:
        np.testing.assert_array_equal(file["feats"][:], np.load(tmp_path / "whole" / "features.npy"))


def test_the_root_of_each_row_is_named(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg"])
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert (tmp_path / "out" / "roots.txt").read_text() == f"{filled.roots[0]}\n" * 2


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o002, 0o775, 0o664), (0o077, 0o700, 0o600)]
)
def test_the_umask_decides_who_may_read(
    filled: Filled, tmp_path: Path, umask: int, folder: int, file: int
) -> None:
    filled.done(["a.jpg"])
    before = os.umask(umask)
    try:
        export.to_npy(filled.catalog, filled.store, tmp_path / "new/out")
        export.to_hdf5(filled.catalog, filled.store, tmp_path / "new/out.h5")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert len(modes) == 8
    assert {path.name for path, mode in modes.items() if mode != (folder if path.is_dir() else file)} == set()
    assert (tmp_path / "new").stat().st_mode & 0o777 == folder


def test_a_stream_gets_the_array_or_nothing(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.done(["c.jpg"])
    stream = io.BytesIO()
    assert export.to_stream(filled.catalog, filled.store, stream).rows == 3
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert stream.getvalue() == (tmp_path / "out/features.npy").read_bytes()
    max(filled.store.glob("shards/*/*.h5"), key=lambda path: path.name).unlink()
    stream = io.BytesIO()
    with pytest.raises(ShardError, match="missing"):
        export.to_stream(filled.catalog, filled.store, stream)
    assert stream.getvalue() == b""


def test_roots_are_named_where_there_are_several(tmp_path: Path, database_url: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    filled = Filled(tmp_path / "instance", database_url, (one, two))
    filled.done(["a.jpg"], one)
    filled.done(["a.jpg"], two)
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["a.jpg", "a.jpg"]
    assert (tmp_path / "out" / "roots.txt").read_text().splitlines() == [str(one), str(two)]
    filled.catalog.dispose()


def test_what_is_not_done_is_not_exported(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    ids = ids_by_path(filled)
    connect.transact(filled.catalog, lambda conn: enqueue.mark_gone(conn, [ids["b.jpg"]], "vanished"))
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["a.jpg", "c.jpg"]


def stale(filled: Filled, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The export sees its first chunk as it was before compaction moved the rows."""
    with connect.reading(filled.catalog) as conn:
        rows = live.live_vectors(conn, 0, 1000)
    before = [row._replace(**changes) for row in rows]
    monkeypatch.setattr(live, "walk_live", lambda catalog, limit: iter([before]))


def test_rows_that_moved_to_another_shard_are_followed(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    ids = ids_by_path(filled)
    stale(filled, monkeypatch, shard_path="shards/2026-01-01/compacted-away.h5")
    connect.transact(filled.catalog, lambda conn: enqueue.mark_gone(conn, [ids["b.jpg"]], "vanished"))
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["a.jpg", "c.jpg"]
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "features.npy"), filled.vectors([ids["a.jpg"], ids["c.jpg"]], 5)
    )


def test_rows_done_meanwhile_push_none_out_of_what_is_looked_up_again(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    stale(filled, monkeypatch, shard_path="shards/2026-01-01/compacted-away.h5")
    (first, _, last) = next(
        iter(live.walk_live(filled.catalog, 1000))
    )  # the one between is done after this look
    monkeypatch.setattr(live, "walk_live", lambda catalog, limit: iter([[first, last]]))
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["a.jpg", "c.jpg"]


def test_a_vector_of_another_image_is_never_exported(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg"])
    stale(filled, monkeypatch, shard_row=0)
    with pytest.raises(ShardError, match=r"\.h5: row 0 holds the vector of image"):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_half_way_leaves_nothing(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.done(["c.jpg"])
    newest = max(filled.store.glob("shards/*/*.h5"), key=lambda path: path.name)
    newest.unlink()
    monkeypatch.setattr(export, "CHUNK_BYTES", 20)  # one vector
    for write, out in ((export.to_npy, tmp_path / "out"), (export.to_hdf5, tmp_path / "out.h5")):
        with pytest.raises(ShardError, match="missing"):
            write(filled.catalog, filled.store, out)
    assert list(tmp_path.glob("out*")) == []


def test_a_missing_shard_is_named(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    (shard,) = filled.store.glob("shards/*/*.h5")
    shard.unlink()
    with pytest.raises(ShardError, match=f"{shard.name}: missing"):
        export.to_hdf5(filled.catalog, filled.store, tmp_path / "out.h5")
    assert list(tmp_path.glob("out*")) == []


def test_a_flipped_bit_is_named(filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK_BYTES", 20)  # one vector
    filled.done(["a.jpg", "b.jpg"])
    filled.done(["c.jpg"])
    for shard in filled.store.glob("shards/*/*.h5"):
        whole = shard.read_bytes()
        for at in (len(whole) // 2, len(whole) - 1):
            shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ShardError, match=f"{shard.name}: damaged.*featd verify --repair"):
                export.to_hdf5(filled.catalog, filled.store, tmp_path / "out.h5")
        shard.write_bytes(whole)
    assert list(tmp_path.glob("out*")) == []
    assert export.to_npy(filled.catalog, filled.store, tmp_path / "out").rows == 3


def test_a_shard_of_another_fingerprint_is_refused(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    (shard,) = filled.store.glob("shards/*/*.h5")
    with h5py.File(shard, "r+") as file:
        file.attrs["fingerprint"] = "0" * 64
    record_checksum(filled, shard)
    with pytest.raises(ShardError, match="another fingerprint"):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out")


def test_nothing_to_export(filled: Filled, tmp_path: Path) -> None:
    with pytest.raises(NothingMatchedError):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    filled.done(["a.jpg"])
    connect.transact(
        filled.catalog, lambda conn: enqueue.mark_gone(conn, list(ids_by_path(filled).values()), "vanished")
    )
    with pytest.raises(NothingMatchedError):
        export.to_hdf5(filled.catalog, filled.store, tmp_path / "out.h5")
    assert not list(tmp_path.glob("out*"))


def test_a_blob_that_is_not_there_lists_those_that_are(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    with pytest.raises(ModelError, match=r"fc7, pool5/7x7_s1"):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out", Wanted(["fc8"]))


def test_a_store_that_is_not_mounted_is_out_of_reach(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    filled.store.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailableError):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out")


def test_what_is_there_is_replaced_by_force_alone(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    out, file = tmp_path / "out", tmp_path / "out.h5"
    for _ in range(2):
        with pytest.raises(FeatdError, match="exists already") if out.exists() else contextlib.nullcontext():
            export.to_npy(filled.catalog, filled.store, out)
            export.to_hdf5(filled.catalog, filled.store, file)
    with pytest.raises(FeatdError, match="exists already"):
        export.to_hdf5(filled.catalog, filled.store, file)
    filled.done(["b.jpg"])
    (out / "mine.txt").write_text("kept")
    export.to_npy(filled.catalog, filled.store, out, force=True)
    export.to_hdf5(filled.catalog, filled.store, file, force=True)
    assert names_of(out) == ["a.jpg", "b.jpg"]
    assert (out / "mine.txt").read_text() == "kept"
    with h5py.File(file) as opened:
        assert opened["feats"].shape == (2, 5)


def test_the_loops_of_the_documentation_add_no_vector_twice(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg", "vanished.jpg"])
    gone = ids_by_path(filled)["vanished.jpg"]
    changed = [FoundFile("a.jpg", 11, 2)]
    connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), changed)
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))
    connect.transact(filled.catalog, lambda conn: enqueue.mark_gone(conn, [gone], "vanished"))
    export.to_npy(filled.catalog, filled.store, tmp_path / "OUT")
    page = (Path(__file__).parents[2] / "docs/shard-format.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (index_loop,) = [block for block in blocks if "index.add" in block]
    (newest_loop,) = [block for block in blocks if "newest" in block]

    class Index:
        added = np.empty((0, 5), np.float32)

        def add(self, vectors: Any) -> None:
            self.added = np.concatenate([self.added, vectors])

    index, names = Index(), {"newest": {}}
    monkeypatch.chdir(tmp_path)
    exec(index_loop, {"index": index})
    assert len(index.added) == 2  # a.jpg once, b.jpg once, vanished.jpg not at all
    monkeypatch.chdir(filled.folder)
    exec(newest_loop, names)
    found = {name: (version, row) for (_, name), (version, _, row) in names["newest"].items()}
    assert found == {b"a.jpg": (2, 0), b"b.jpg": (1, 1), b"vanished.jpg": (1, 0)}


@pytest.mark.parametrize("rows", [0, 1, 10**12])
def test_the_header_is_equally_long_for_any_number_of_rows(rows: int) -> None:
    file, empty = io.BytesIO(), io.BytesIO()
    npy.write_header(file, np.dtype(np.float16), (rows, 4096))
    npy.write_header(empty, np.dtype(np.float16), (0, 4096))
    assert len(file.getvalue()) == len(empty.getvalue())
    file.seek(0)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == ((rows, 4096), False, np.dtype(np.float16))
    assert file.tell() == len(file.getvalue())


def number(filled: Filled) -> None:
    """As the janitor does."""
    while connect.transact(filled.catalog, feed.number):
        pass


def gone(filled: Filled, path: str) -> None:
    ids = [ids_by_path(filled)[path]]
    connect.transact(filled.catalog, enqueue.mark_gone, ids, "the file is gone")


def arrays(folder: Path) -> dict[str, Any]:
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def test_ids_and_versions_are_beside_the_vectors(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg"])
    connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), [FoundFile("a.jpg", 11, 2)])
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))
    export.to_npy(filled.catalog, filled.store, tmp_path / "out")
    found = arrays(tmp_path / "out")
    assert (found["ids"].tolist(), found["ids"].dtype) == ([1, 2], np.int64)
    assert (found["versions"].tolist(), found["versions"].dtype) == ([2, 1], np.int32)


def test_several_blobs_have_a_file_or_a_dataset_each(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg"])
    both = {name: filled.vectors([1, 2], size).tolist() for name, size in filled.blobs.items()}
    for wanted in (Wanted(all_blobs=True), Wanted(list(filled.blobs))):
        export.to_npy(filled.catalog, filled.store, tmp_path / "out", wanted, force=True)
        found = arrays(tmp_path / "out")
        assert found.keys() == {"features-fc7", "features-pool5%2F7x7_s1", "ids", "versions"}
        assert found["features-fc7"].tolist() == both["fc7"]
        assert found["features-pool5%2F7x7_s1"].tolist() == both["pool5/7x7_s1"]
        export.to_hdf5(filled.catalog, filled.store, tmp_path / "out.h5", wanted, force=True)
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["blobs/fc7"] == file["feats"]
            assert {name: file[f"blobs/{name}"][:].tolist() for name in both} == both
            assert json.loads(file.attrs["blobs"]) == list(both)
    with pytest.raises(FeatdError, match=r"only one blob.*name a folder"):
        export.to_stream(filled.catalog, filled.store, io.BytesIO(), wanted)
    export.to_npy(filled.catalog, filled.store, tmp_path / "out", force=True)
    assert arrays(tmp_path / "out").keys() == {"features", "ids", "versions"}  # none of before is left


def test_what_became_of_images_since_a_token(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    number(filled)
    whole = export.to_npy(filled.catalog, filled.store, tmp_path / "whole")
    assert (tmp_path / "whole/token.txt").read_text() == f"{whole.token}\n"
    gone(filled, "b.jpg")
    filled.done(["e.jpg"])
    for version in (2, 3):  # a.jpg is in two changes
        changed = [FoundFile("a.jpg", 11, version)]
        connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), changed)
        shard, made = filled.seal(filled.claim())
        filled.settle(Settlement(shard, made))
    number(filled)
    since = Wanted(since=whole.token)
    delta = export.to_npy(filled.catalog, filled.store, tmp_path / "delta", since)
    export.to_hdf5(filled.catalog, filled.store, tmp_path / "delta.h5", since)
    found = arrays(tmp_path / "delta")
    assert (found["ids"].tolist(), found["versions"].tolist()) == ([1, 5], [3, 1])
    assert found["features"].tolist() == filled.vectors([1, 5], 5).tolist()
    assert (found["deleted"].tolist(), found["deleted"].dtype) == ([2], np.int64)
    assert (delta.rows, delta.deleted) == (2, 1)
    assert names_of(tmp_path / "delta") == ["a.jpg", "e.jpg"]
    with h5py.File(tmp_path / "delta.h5") as file:
        assert (file["image_id"][:].tolist(), file["deleted"][:].tolist()) == ([1, 5], [2])
        assert (file.attrs["since"], file.attrs["token"]) == (whole.token, delta.token)
    with pytest.raises(FeatdError, match="deleted ids"):
        export.to_stream(filled.catalog, filled.store, io.BytesIO(), since)
    export.to_npy(filled.catalog, filled.store, tmp_path / "delta", force=True)
    assert "deleted" not in arrays(tmp_path / "delta")


def test_changes_of_many_portions_are_one_export(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["first.jpg"])
    number(filled)
    token = export.to_npy(filled.catalog, filled.store, tmp_path / "whole").token
    for at in range(7):
        filled.done([f"{at}-{one}.jpg" for one in range(3)])
    gone(filled, "first.jpg")
    gone(filled, "3-1.jpg")
    number(filled)
    monkeypatch.setattr(export, "CHANGES", 2)
    monkeypatch.setattr(export, "CHUNK_BYTES", 40)  # two vectors
    export.to_npy(filled.catalog, filled.store, tmp_path / "delta", Wanted(since=token))
    found = arrays(tmp_path / "delta")
    live_ids = [one for one in range(2, 23) if one != ids_by_path(filled)["3-1.jpg"]]
    assert found["ids"].tolist() == live_ids
    assert found["features"].tolist() == filled.vectors(live_ids, 5).tolist()
    assert found["deleted"].tolist() == [1, ids_by_path(filled)["3-1.jpg"]]


def test_nothing_has_changed_or_nothing_is_left(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    number(filled)
    token = export.to_npy(filled.catalog, filled.store, tmp_path / "whole").token
    since = Wanted(since=token, all_blobs=True)
    same = export.to_npy(filled.catalog, filled.store, tmp_path / "same", since)
    assert (same.rows, same.deleted, same.token) == (0, 0, token)
    assert arrays(tmp_path / "same")["features-fc7"].shape == (0, 5)
    gone(filled, "a.jpg")
    number(filled)
    export.to_npy(filled.catalog, filled.store, tmp_path / "left", since)
    export.to_hdf5(filled.catalog, filled.store, tmp_path / "left.h5", since)
    export.to_parquet(filled.catalog, filled.store, tmp_path / "left.parquet", since)
    assert arrays(tmp_path / "left")["deleted"].tolist() == [1]
    with h5py.File(tmp_path / "left.h5") as file:
        assert (file["deleted"][:].tolist(), file["feats"].shape) == ([1], (0, 0))
    assert pq.read_table(tmp_path / "left.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "left.deleted.parquet")["image_id"].to_pylist() == [1]
    with pytest.raises(ModelError, match="no blob 'fc8'"):
        export.to_npy(filled.catalog, filled.store, tmp_path / "x", Wanted(["fc8"], since=token))
    for wrong in ("nonsense", token.replace(".", ".0")):
        with pytest.raises(TokenError):
            export.to_npy(filled.catalog, filled.store, tmp_path / "x", Wanted(since=wrong))
    assert not (tmp_path / "x").exists()


def test_the_token_is_of_before_the_reading(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg"])
    number(filled)
    walk = live.walk_live

    def late(catalog: sa.Engine, limit: int) -> Iterator[Any]:
        yield from walk(catalog, limit)
        filled.done(["b.jpg"])
        number(filled)

    monkeypatch.setattr(live, "walk_live", late)
    whole = export.to_npy(filled.catalog, filled.store, tmp_path / "whole")
    assert names_of(tmp_path / "whole") == ["a.jpg"]
    export.to_npy(filled.catalog, filled.store, tmp_path / "delta", Wanted(since=whole.token))
    assert names_of(tmp_path / "delta") == ["b.jpg"]


def of_values(filled: Filled, *rows: list[float]) -> None:
    """Images with these vectors in the first blob."""
    values = {5: np.array(rows, np.float32), 3: np.ones((len(rows), 3), np.float32)}
    filled.vectors = lambda ids, size: values[size][: len(ids)]  # type: ignore[method-assign]
    filled.enqueue([f"{at}.jpg" for at in range(len(rows))])
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))


def test_l2_and_dtype(filled: Filled, tmp_path: Path) -> None:
    of_values(filled, [3, 0, 0, 4, 0], [0] * 5, [1e30, 1e30, 0, 0, 0], [1e-30, 0, 0, 0, 0])
    export.to_npy(filled.catalog, filled.store, tmp_path / "out", Wanted(l2=True))
    half = [0.5**0.5] * 2 + [0] * 3
    expected = np.array([[0.6, 0, 0, 0.8, 0], [0] * 5, half, [1, 0, 0, 0, 0]], np.float32)
    found = arrays(tmp_path / "out")["features"]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    export.to_npy(filled.catalog, filled.store, tmp_path / "small", Wanted(l2=True, dtype="float16"))
    found = arrays(tmp_path / "small")["features"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    with pytest.raises(FeatdError, match=r"2\.jpg \(image 3\): blob 'fc7' has a value beyond 65504.*--l2"):
        export.to_npy(filled.catalog, filled.store, tmp_path / "large", Wanted(dtype="float16"))
    assert not (tmp_path / "large").exists()


def test_float16_ends_at_65504(filled: Filled, tmp_path: Path) -> None:
    of_values(filled, [65504, -65504, 0, 1, 2])
    export.to_npy(filled.catalog, filled.store, tmp_path / "out", Wanted(dtype="float16"))
    assert arrays(tmp_path / "out")["features"].tolist() == [[65504, -65504, 0, 1, 2]]
