"""The export as Parquet, read by pyarrow, DuckDB and Polars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featd.catalog import connect, enqueue, feed
from featd.errors import FeatdError
from featd.export import export
from featd.export.export import Wanted
from featd.paths import to_catalog
from featd.shards.layout import ShardError
from filled import FINGERPRINT, Filled

ODD = to_catalog(b"b/\xff \\ \n\xc3\xbc.jpg")


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images", tmp_path / "others"))
    yield made
    made.catalog.dispose()


@pytest.fixture
def out(filled: Filled, tmp_path: Path) -> Path:
    """Three images of two roots with all their blobs, in a file whose name needs no quotes."""
    filled.done(["a.jpg", ODD])
    filled.done(["a.jpg"], filled.roots[1])
    export.to_parquet(filled.catalog, filled.store, tmp_path / "vectors.parquet", Wanted(all_blobs=True))
    return tmp_path / "vectors.parquet"


def expected(filled: Filled) -> dict[str, Any]:
    one, two = (str(root) for root in filled.roots)
    return {
        "image_id": [1, 2, 3],
        "root": [one, one, two],
        "path": ["a.jpg", ODD, "a.jpg"],
        "version": [1, 1, 1],
        "fc7": filled.vectors([1, 2, 3], 5).tolist(),
        "pool5/7x7_s1": filled.vectors([1, 2, 3], 3).tolist(),
    }


def test_pyarrow_reads_it(filled: Filled, out: Path, tmp_path: Path) -> None:
    table = pq.read_table(out)
    assert table.to_pydict() == expected(filled)
    assert table.schema.field("fc7").type == pa.list_(pa.float32(), 5)
    assert [field.type for field in table.schema][:4] == [pa.int64(), pa.string(), pa.string(), pa.int32()]
    about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    assert (about["instance"], about["fingerprint"]) == (filled.instance, FINGERPRINT)
    assert json.loads(about["blobs"]) == list(filled.blobs)
    assert json.loads(about["spec"])["dtype"] == "float32"
    with connect.reading(filled.catalog) as conn:
        assert about["token"] == str(feed.now(conn))
    assert list(tmp_path.glob("*.part")) == []


def test_duckdb_reads_it(filled: Filled, out: Path) -> None:
    found = duckdb.sql(f"SELECT * FROM '{out}' ORDER BY image_id")
    rows = [list(column) for column in zip(*found.fetchall(), strict=True)]
    assert {name: [list(v) if isinstance(v, tuple) else v for v in column]
            for name, column in zip(found.columns, rows, strict=True)} == expected(filled)  # fmt: skip


def test_polars_reads_it(filled: Filled, out: Path) -> None:
    frame = pl.read_parquet(out)
    assert frame.to_dict(as_series=False) == expected(filled)
    assert frame.schema["fc7"] == pl.Array(pl.Float32, 5)


def test_float16(filled: Filled, out: Path) -> None:
    export.to_parquet(filled.catalog, filled.store, out, Wanted(dtype="float16"), force=True)
    table = pq.read_table(out)
    assert table.schema.field("fc7").type == pa.list_(pa.float16(), 5)
    vectors = table["fc7"].combine_chunks().flatten().to_numpy().reshape(-1, 5)
    np.testing.assert_array_equal(vectors, filled.vectors([1, 2, 3], 5).astype(np.float16))
    assert [list(row[0]) for row in duckdb.sql(f"SELECT fc7 FROM '{out}'").fetchall()] == vectors.tolist()


def test_row_groups_are_bounded_in_bytes(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done([f"{at}.jpg" for at in range(7)])
    for size, groups in ((60, [3, 3, 1]), (1, [1] * 7)):  # three vectors; less than one, as for a huge d
        monkeypatch.setattr(export, "CHUNK_BYTES", size)
        export.to_parquet(filled.catalog, filled.store, tmp_path / "out.parquet", force=True)
        about = pq.read_metadata(tmp_path / "out.parquet")
        assert [about.row_group(at).num_rows for at in range(about.num_row_groups)] == groups
        assert pq.read_table(tmp_path / "out.parquet")["image_id"].to_pylist() == list(range(1, 8))


def test_changes_are_applied_with_two_statements(filled: Filled, out: Path, tmp_path: Path) -> None:
    token = pq.read_schema(out).metadata[b"token"].decode()
    connect.transact(filled.catalog, enqueue.mark_gone, [1], "the file is gone")
    filled.done(["new.jpg"])
    while connect.transact(filled.catalog, feed.number):
        pass
    new = tmp_path / "new.parquet"
    export.to_parquet(filled.catalog, filled.store, new, Wanted(all_blobs=True, since=token))
    with duckdb.connect() as db:
        db.sql(f"CREATE TABLE vectors AS FROM '{out}'")
        for part in (new, new.with_name("new.deleted.parquet")):
            db.sql(f"DELETE FROM vectors WHERE image_id IN (SELECT image_id FROM '{part}')")
        db.sql(f"INSERT INTO vectors FROM '{new}'")
        assert db.sql("SELECT image_id FROM vectors ORDER BY 1").fetchall() == [(2,), (3,), (4,)]
    new.unlink()
    with pytest.raises(FeatdError, match=r"new\.deleted\.parquet exists already"):
        export.to_parquet(filled.catalog, filled.store, new, Wanted(since=token))
    export.to_parquet(filled.catalog, filled.store, new, Wanted(since=token), force=True)
    export.to_parquet(filled.catalog, filled.store, new, force=True)
    assert not new.with_name("new.deleted.parquet").exists()  # those deleted before the whole export


def test_what_an_export_that_was_killed_left_is_replaced(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    for name in ("out.parquet", "out.h5", "out/features.npy", "out/ids.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.part").write_text("half")
    export.to_parquet(filled.catalog, filled.store, tmp_path / "out.parquet")
    export.to_hdf5(filled.catalog, filled.store, tmp_path / "out.h5")
    export.to_npy(filled.catalog, filled.store, tmp_path / "out", force=True)
    assert list(tmp_path.rglob("*.part")) == []
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 1


def test_one_that_fails_leaves_nothing(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.done(["c.jpg"])
    max(filled.store.glob("shards/*/*.h5"), key=lambda path: path.name).unlink()
    monkeypatch.setattr(export, "CHUNK_BYTES", 20)  # one vector
    with pytest.raises(ShardError, match="missing"):
        export.to_parquet(filled.catalog, filled.store, tmp_path / "out.parquet")
    assert list(tmp_path.glob("out*")) == []


def test_a_full_disk(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    code = (
        "import sys, os, pathlib; from featd.export import export; from featd.shards import atomic;"
        "from featd.catalog import connect;"
        "atomic.create_part = lambda path, public: os.open('/dev/full', os.O_WRONLY);"
        "export.to_parquet(connect.open_catalog(sys.argv[1]), *map(pathlib.Path, sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, filled.url, str(filled.store), str(tmp_path / "full.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.endswith("OSError: [Errno 28] No space left on device\n")
    assert "ignored" not in done.stderr
    assert list(tmp_path.glob("full*")) == []


def test_without_pyarrow(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    code = "import sys; sys.modules['pyarrow'] = None; from featd_cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--config", str(filled.config), "export", "x.parquet"]
    done = subprocess.run([*command, "--format", "parquet"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'featd[parquet]'" in done.stderr
    done = subprocess.run([*command[:-1], "x"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_blob_that_is_called_like_a_column(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/featd.db"
    filled = Filled(tmp_path / "instance", url, (tmp_path / "images",), {"path": 2})
    filled.done(["a.jpg"])
    with pytest.raises(FeatdError, match=r"blob 'path'.*--format hdf5"):
        export.to_parquet(filled.catalog, filled.store, tmp_path / "x.parquet")
    filled.catalog.dispose()


def test_the_umask_decides_who_may_read(filled: Filled, tmp_path: Path) -> None:
    filled.done(["a.jpg"])
    before = os.umask(0o027)
    try:
        export.to_parquet(filled.catalog, filled.store, tmp_path / "new/out.parquet")
    finally:
        os.umask(before)
    assert (tmp_path / "new/out.parquet").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
