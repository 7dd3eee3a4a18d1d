"""Which vectors of images that are gone a worker takes for moved files: those that are certainly right, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, corrections, enqueue, gone, schema, values
from featd.catalog.settle import Settlement
from featd.decoders.wire import Hashed
from featd.shards.checksum import checksum
from featd.shards.verify import Verified
from featd.states import Correction
from featd.worker.moved import Moved
from featd.worker.writer import VectorBatch
from filled import BLOBS, FINGERPRINT, Filled


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    """Images 0 to 5 in two shards, of contents c0 to c5; those up to 3 are gone."""
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",))
    for part in (range(3), range(3, 6)):
        made.enqueue([f"{n}.jpg" for n in part])
        shard, rows = made.seal(made.claim()[::-1])
        made.settle(Settlement(shard, [one._replace(content="c" + one.image.path[0]) for one in rows]))
    ids = [row.id for row in rows_of(made, schema.images) if row.path < "4"]
    connect.transact(made.catalog, enqueue.mark_gone, ids, "vanished")
    yield made
    made.catalog.dispose()


def rows_of(filled: Filled, table: sa.Table) -> list[sa.Row[Any]]:
    with connect.reading(filled.catalog) as conn:
        return list(conn.execute(sa.select(table).order_by(table.c.id)))


def moved(filled: Filled, **differing: Any) -> Moved:
    given = {"catalog": filled.catalog, "fingerprint": FINGERPRINT, "blobs": BLOBS, **differing}
    return Moved(store=filled.store, verified=Verified(), beat=lambda: None, **given)


def hashed(filled: Filled, *contents: str, corrected: Sequence[str] = ()) -> list[Hashed]:
    filled.enqueue([f"new {at}" for at in range(len(contents))])
    images = filled.claim()
    assert all(image.seeks for image in images)
    return [Hashed(image, content, corrected) for image, content in zip(images, contents, strict=True)]


def found(batches: Sequence[VectorBatch]) -> dict[str, tuple[str, float]]:
    """Name -> the content, and the first number of the vector, which is 10 times the id of the image it was made of."""
    return {
        one.image.path: (one.content, float(batch.vectors["fc7"][at, 0]))
        for batch in batches
        for at, one in enumerate(batch.files)
    }


def test_the_vectors_of_any_number_of_images_are_found(filled: Filled) -> None:
    asked = hashed(filled, "c1", "c3", "other", "c0", "c1", "c4")
    batches = moved(filled).find(asked)
    ids = {row.path: row.id * 10 for row in rows_of(filled, schema.images)}
    assert found(batches) == {
        "new 0": ("c1", ids["1.jpg"]),
        "new 1": ("c3", ids["3.jpg"]),
        "new 3": ("c0", ids["0.jpg"]),
        "new 4": ("c1", ids["1.jpg"]),
    }
    for batch in batches:
        assert {blob: values.shape for blob, values in batch.vectors.items()} == {
            blob: (len(batch.files), width) for blob, width in BLOBS.items()
        }


def test_nobody_seeks_where_nothing_is_gone_that_has_a_vector(filled: Filled) -> None:
    for statement in (
        sa.update(schema.images).values(state="done"),
        sa.update(schema.images).values(state="gone", content=None, shard_id=None),
    ):
        with filled.catalog.begin() as conn:
            conn.execute(statement)
        with connect.reading(filled.catalog) as conn:
            assert not gone.any_kept(conn)
    filled.enqueue(["new"])
    assert [image.seeks for image in filled.claim()] == [False]


@pytest.mark.parametrize(
    "how", ["retired", "of another fingerprint", "other blobs", "of another image", "no HDF5", "no catalog"]
)
def test_a_vector_that_is_not_certainly_right_is_not_taken(filled: Filled, how: str) -> None:
    asked = hashed(filled, "c0")
    options: dict[str, Any] = {}
    shard = rows_of(filled, schema.shards)[0]
    values_of: dict[str, Any] = {}
    match how:
        case "retired":
            values_of = {"retired": clock.utcnow()}
        case "of another fingerprint":
            options = {"fingerprint": "0" * 64}
        case "other blobs":
            options = {"blobs": {"fc7": 5}}
        case "of another image":
            asked_row = sa.update(schema.images).where(schema.images.c.content == "c0")
            with filled.catalog.begin() as conn:
                conn.execute(asked_row.values(shard_row=1))
        case "no HDF5":
            (filled.store / shard.path).write_bytes(b"no shard")
            values_of = {"checksum": checksum(filled.store / shard.path)}
        case "no catalog":
            options = {"catalog": connect.open_catalog("sqlite:////nowhere/at/all.db")}
    if values_of:
        with filled.catalog.begin() as conn:
            conn.execute(sa.update(schema.shards).where(schema.shards.c.id == shard.id).values(**values_of))
    assert moved(filled, **options).find(asked) == []


def test_a_damaged_shard_is_read_and_told_once(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked: list[Path] = []
    real = Verified.check

    def check(self: Verified, path: Path, recorded: str) -> None:
        checked.append(path)
        real(self, path, recorded)

    monkeypatch.setattr(Verified, "check", check)
    shards = [filled.store / shard.path for shard in rows_of(filled, schema.shards)]
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    finder = moved(filled)
    asked = hashed(filled, "c0", "c3")
    for _ in range(3):
        assert [content for content, _ in found(finder.find(asked)).values()] == ["c3"]
    assert checked.count(shards[0]) == 1
    assert caplog.text.count("are extracted again") == 1


@pytest.mark.parametrize("lacked", [corrections.LACKED, corrections.REQUEUED])
def test_a_picture_that_a_correction_changes_gets_no_vector_from_before(filled: Filled, lacked: str) -> None:
    first = rows_of(filled, schema.shards)[0].id
    connect.transact(filled.catalog, values.set_value, lacked, {Correction.TIFF_ALPHA: first})
    finder = moved(filled)
    plain = hashed(filled, "c0", "c3")
    assert len(found(finder.find(plain))) == 2
    for names, expected in (
        ([Correction.TIFF_ALPHA], ["c3"]),  # its shard is newer
        ([Correction.BMP_FIELDS], ["c0", "c3"]),
        (list(Correction), ["c3"]),
    ):
        asked = [replace(one, corrected=names) for one in plain]
        assert sorted(content for content, _ in found(finder.find(asked)).values()) == expected
    connect.transact(filled.catalog, values.set_value, lacked, {Correction.TIFF_ALPHA: 0})
    assert len(found(finder.find([replace(one, corrected=list(Correction)) for one in plain]))) == 2


def test_every_half_number_survives_the_way_through_single_precision() -> None:
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    assert np.array_equal(half.astype(np.float32).astype(np.float16).view(np.uint16), half.view(np.uint16))
