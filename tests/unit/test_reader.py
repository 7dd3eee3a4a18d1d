"""`featd.open`: vectors by path, in batches, and what became of them; beside compaction, and with rights to read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import featd
from featd.catalog import connect, enqueue, feed
from featd.config import StoreConfig
from featd.errors import AmbiguousPathError, ModelError, TokenError
from featd.janitor.compaction import Compaction
from featd.paths import to_catalog
from featd.reader import features as reader
from featd.reader import vectors
from featd.reader.features import Batch, Features
from featd.shards.layout import ShardError
from featd.shards.write import ShardWriter
from filled import Filled


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images", tmp_path / "others"))
    yield made
    made.catalog.dispose()


@pytest.fixture
def features(filled: Filled) -> Iterator[Features]:
    with featd.open(filled.config) as features:
        yield features


def number(filled: Filled) -> None:
    """As the janitor does."""
    while connect.transact(filled.catalog, feed.number):
        pass


def index_of(batches: Iterator[Batch]) -> dict[int, list[float]]:
    return {
        image_id: vector
        for batch in batches
        for image_id, vector in zip(batch.ids.tolist(), batch.vectors.tolist(), strict=True)
    }


def expected(filled: Filled, ids: list[int], size: int = 5) -> dict[int, list[float]]:
    return dict(zip(ids, filled.vectors(ids, size).tolist(), strict=True))


def test_nothing_is_done_yet(features: Features) -> None:
    assert (len(features), features.blobs, list(features.batches())) == (0, {}, [])
    with pytest.raises(KeyError):
        features["a.jpg"]
    assert list(features.changes(features.token)) == []


def test_by_path(filled: Filled, features: Features) -> None:
    strange = os.fsdecode(b"2026/\xff b.jpg")
    filled.done(["2026/a.jpg", to_catalog(os.fsencode(strange))])
    filled.done(["2026/a.jpg"], filled.roots[1])
    filled.enqueue(["waits.jpg"])
    assert features.blobs == filled.blobs
    assert len(features) == 3
    assert features[strange].tolist() == filled.vectors([1], 5)[0].tolist()
    assert features[strange].dtype == np.float32
    assert features[str(filled.roots[1]), "2026/a.jpg"].tolist() == filled.vectors([3], 5)[0].tolist()
    assert features.get(strange, "pool5/7x7_s1").tolist() == filled.vectors([1], 3)[0].tolist()
    with pytest.raises(AmbiguousPathError, match="several roots"):
        features["2026/a.jpg"]
    for missing in ("waits.jpg", "nothing.jpg", ("/no/root", "2026/a.jpg")):
        with pytest.raises(KeyError):
            features[missing]
    with pytest.raises(ModelError, match="it has: fc7"):
        features.get(strange, "fc8")


def test_batches(filled: Filled, features: Features) -> None:
    for n in range(4):
        filled.done([f"{n}-{at}.jpg" for at in range(3)])
    batches = list(features.batches(rows=5))
    assert [len(batch.ids) for batch in batches] == [5, 5, 2]
    assert index_of(iter(batches)) == expected(filled, list(range(1, 13)))
    assert batches[0].ids.dtype == np.int64
    assert batches[0].paths[0] == "0-0.jpg"
    assert set(batches[0].roots) == {str(filled.roots[0])}
    assert index_of(features.batches("pool5/7x7_s1")) == expected(filled, list(range(1, 13)), 3)


def test_shards_that_move_meanwhile_are_found_again(filled: Filled, features: Features) -> None:
    for n in range(8):
        filled.done([f"{n}-{at}.jpg" for at in range(2)])
    batches = features.batches(rows=3)
    first = next(batches)
    filled.end_lease()
    store = StoreConfig(path=filled.store, grace_seconds=0.0)
    for _ in range(2):
        for _ in Compaction(filled.catalog, store, "here", 60.0, eager=True).work():
            pass
    found = index_of(iter([first, *batches]))
    assert found == expected(filled, list(range(1, 17)))


def test_what_became_of_them(filled: Filled, features: Features) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    number(filled)
    token = features.token
    index = index_of(features.batches())
    connect.transact(filled.catalog, enqueue.mark_gone, [1], "the file is gone")
    filled.done(["d.jpg"])
    number(filled)
    (change,) = features.changes(token)
    assert change.deleted.tolist() == [1]
    assert (change.upserts.ids.tolist(), change.upserts.paths) == ([4], ["d.jpg"])
    index |= index_of(iter([change.upserts]))
    for image_id in change.deleted.tolist():
        del index[image_id]
    assert index == index_of(features.batches())
    assert change.token == features.token
    assert list(features.changes(change.token)) == []
    connect.transact(filled.catalog, enqueue.mark_gone, [2], "the file is gone")
    number(filled)
    (change,) = features.changes(change.token)
    assert (change.deleted.tolist(), change.upserts.vectors.shape) == ([2], (0, 5))
    with pytest.raises(TokenError):
        list(features.changes("nonsense"))


class Search:
    """As an index of FAISS with ids."""

    def __init__(self) -> None:
        self.vectors: dict[int, list[float]] = {}

    def add_with_ids(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self.vectors |= dict(zip(ids.tolist(), vectors.tolist(), strict=True))

    def remove_ids(self, ids: np.ndarray) -> None:
        for one in ids.tolist():
            self.vectors.pop(one, None)


def test_the_example_of_the_docs(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.done(["2024/a.jpg", "b.jpg"])
    page = (Path(__file__).parents[2] / "docs/shard-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(import featd\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(filled.folder)
    names = {"search": Search()}
    exec(block, names)
    assert names["search"].vectors == expected(filled, [1, 2])


def test_a_damaged_shard_is_named(filled: Filled, features: Features) -> None:
    filled.done(["a.jpg"])
    (shard,) = (filled.store / "shards").rglob("*.h5")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"checksum.*verify"):
        features["a.jpg"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_shards_are_not_open_at_a_time(
    filled: Filled, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "MOST_OPEN", 3)
    for n in range(8):
        filled.done([f"{n}-{at}.jpg" for at in range(2)])
    before = open_files()
    batches = features.batches(rows=16)
    assert index_of(batches) == expected(filled, list(range(1, 17)))
    assert open_files() <= before + 3
    assert features["7-1.jpg"].tolist() == filled.vectors([16], 5)[0].tolist()
    features.close()
    assert open_files() <= before


def test_shards_stay_open(filled: Filled, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MOST_OPEN", 10)
    for n in range(8):
        filled.done([f"{n}.jpg"])
    list(features.batches())
    before = open_files()
    for n in range(8):
        features[f"{n}.jpg"]
    assert open_files() == before


def test_compressed_shards_are_read(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "instance", f"sqlite:///{tmp_path}/featd.db", (tmp_path / "images",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter.__init__, "__kwdefaults__", {"dtype": "float32", "compression": "gzip"})
        filled.done([f"{at:04}.jpg" for at in range(300)])
    (path,) = (filled.store / "shards").rglob("*.h5")
    with h5py.File(path) as shard:
        assert shard["feats"].compression == "gzip"
    with featd.open(filled.config) as features:
        assert index_of(features.batches(rows=100)) == expected(filled, list(range(1, 301)))
    filled.catalog.dispose()


def test_others_may_open_the_shards_meanwhile(filled: Filled, features: Features) -> None:
    filled.done(["a.jpg"])
    features["a.jpg"]
    (path,) = (filled.store / "shards").rglob("*.h5")
    with h5py.File(path) as shard:
        assert shard["feats"].shape == (1, 5)


def test_a_batch_takes_little_memory_by_itself(
    filled: Filled, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 60)  # three vectors
    filled.done([f"{at}.jpg" for at in range(7)])
    assert [len(batch.ids) for batch in features.batches()] == [3, 3, 1]
