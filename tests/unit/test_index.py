"""The index of vectors: it finds what comparing with every vector finds, and its files are whole or made anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featd.catalog import connect, enqueue, feed
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Settlement
from featd.errors import FeatdError, ModelError, NothingMatchedError
from featd.index import files
from featd.index import index as indexing
from featd.index.files import Appender, Head, IndexBusyError, IndexDamagedError, Stored
from featd.index.index import Index, encoded
from featd.index.update import Keeper, update_all
from featd.search import duplicates, pairs
from featd.search.searcher import Searcher
from filled import Filled

Floats = npt.NDArray[np.float32]


def clustered(count: int, size: int, clusters: int, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    middles = random.standard_normal((clusters, size), dtype=np.float32)
    noise = random.standard_normal((count, size), dtype=np.float32)
    return middles[random.integers(0, clusters, count)] + 0.3 * noise


def made(folder: Path, vectors: Floats, dtype: str = "float32") -> Index:
    """An index of images 1, 2, ... in files."""
    folder.mkdir(parents=True, exist_ok=True)
    head = Head("instance", "fingerprint", "fc7", "0.h", dtype, vectors.shape[1])
    appender = Appender(folder, head)
    stored, table = encoded(vectors, dtype)
    table["id"], table["version"] = np.arange(len(vectors)) + 1, 1
    appender.append(stored)
    appender.finish()
    appender.close()
    head = files.publish(folder, head, table, None, None)
    return Index(folder, head, Stored(folder, head))


def truth(vectors: Floats, query: Floats, count: int) -> list[int]:
    """By distances in double precision; of equal ones the smaller id comes first."""
    apart = np.linalg.norm(vectors.astype(np.float64) - query, axis=1)
    return (np.argsort(apart, kind="stable")[:count] + 1).tolist()


def ids(found: list[Any]) -> list[int]:
    return [near.image_id for near in found]


# Exact


def test_exactly_the_nearest_are_found_whatever_the_lengths_of_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    vectors = clustered(700, 24, 7)
    vectors[100:200] += 1000  # far away, and near to each other: products alone would mix them up
    vectors[200] = vectors[100]
    vectors[300:340] = 0
    index = made(tmp_path, vectors)
    queries = np.concatenate([vectors[95:110], random.standard_normal((9, 24), dtype=np.float32)])
    for query, found in zip(queries, index.search(queries, 12), strict=True):
        assert ids(found) == truth(vectors, query, 12)
        expected = np.linalg.norm(vectors[[one - 1 for one in ids(found)]].astype(np.float64) - query, axis=1)
        np.testing.assert_allclose([near.distance for near in found], expected, rtol=1e-5, atol=1e-6)
    assert [len(found) for found in index.search(queries[:2], 5000)] == [700, 700]


def test_changes_count_at_once_and_are_there_again_from_the_files(tmp_path: Path) -> None:
    vectors = clustered(300, 16, 5)
    index = made(tmp_path, vectors)
    index.remove([7, 8, 9_999])
    index.replace([5, 301], [2, 1], np.stack([vectors[0], vectors[1]]))
    for one in (index, reopened(index)):
        assert len(one) == 299
        assert [(near.image_id, near.version) for near in one.search(vectors[:1], 2)[0]] == [(1, 1), (5, 2)]
        assert ids(one.search(vectors[1:2], 2)[0]) == [2, 301]
        for gone in (6, 7):
            assert gone + 1 not in ids(one.search(vectors[gone : gone + 1], 299)[0])


def reopened(index: Index) -> Index:
    index.save("1.h")
    again = Index.open(index.folder)
    assert again is not None
    assert again.head.token == "1.h"
    return again


def test_queries_of_another_size_are_refused(tmp_path: Path) -> None:
    index = made(tmp_path, clustered(10, 16, 2))
    with pytest.raises(FeatdError, match=r"have 15 numbers, those of blob 'fc7' have 16"):
        index.search(np.zeros((1, 15), np.float32), 1)


# Lists


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists from some thousand vectors on."""
    monkeypatch.setattr(indexing, "EXACT_BYTES", 2000 * 4)
    monkeypatch.setattr(indexing, "LEAST_LISTED", 2000)


@pytest.mark.parametrize("size", [7, 100, 300])
def test_lists_find_nearly_all_of_the_nearest(tmp_path: Path, size: int) -> None:
    vectors = clustered(6000, size, 200)
    index = made(tmp_path, vectors, "float16")
    index.make_lists()
    assert not index.is_exact
    queries = clustered(100, size, 200, seed=1)[50:] * 0.5 + vectors[:50] * 0.5
    hits = sum(
        len(set(ids(found)) & set(truth(vectors, query, 10)))
        for query, found in zip(queries, index.search(queries, 10), strict=True)
    )
    assert hits >= 0.95 * 10 * len(queries)
    assert [ids(found)[0] for found in index.search(vectors[:20], 3)] == list(range(1, 21))
    assert max(found[0].distance for found in index.search(vectors[:20], 3)) < 1e-6


def test_lists_take_up_changes(tmp_path: Path) -> None:
    vectors = clustered(3000, 32, 50)
    index = made(tmp_path, vectors, "float16")
    index.make_lists()
    new = clustered(5, 32, 5, seed=9) + 4
    index.remove([1])
    index.replace(range(3001, 3006), [1] * 5, new)
    for one in (index, reopened(index)):
        assert [ids(found)[0] for found in one.search(new, 1)] == list(range(3001, 3006))
        assert 1 not in ids(one.search(vectors[:1], 50)[0])


@pytest.mark.parametrize("largest", [1e-6, 1.0, 3e5, 1e15])
def test_float16_copies_serve_vectors_of_any_length(tmp_path: Path, largest: float) -> None:
    vectors = (clustered(200, 8, 4) * largest).astype(np.float32)
    vectors[7] = 0
    index = made(tmp_path, vectors, "float16")
    kept = index.vectors(np.arange(200))
    assert np.isfinite(kept).all()
    apart = np.linalg.norm((kept - vectors).astype(np.float64), axis=1)
    assert (apart <= 1e-3 * np.linalg.norm(vectors.astype(np.float64), axis=1)).all()


# Files


def damaged(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["index.json", "table", "sums", "vectors", "lists"])
@pytest.mark.parametrize("how", ["a bit", "cut short", "gone", "a folder", "a pipe"])
def test_whatever_happens_to_a_file_is_noticed(tmp_path: Path, kind: str, how: str) -> None:
    vectors = clustered(2500, 16, 20)
    index = made(tmp_path, vectors, "float16" if kind == "lists" else "float32")
    if kind == "lists":
        index.make_lists()
    (path,) = [path for path in tmp_path.iterdir() if path.name.split("-")[0] == kind]
    if how == "a bit":
        damaged(path, path.stat().st_size // 2)
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
        if how == "a pipe":
            os.mkfifo(path)
    if (kind, how) == ("index.json", "gone"):
        assert Index.open(tmp_path) is None
        return
    with pytest.raises(IndexDamagedError):
        Index.open(tmp_path).search(vectors[:1], 1)  # type: ignore[union-attr]


def test_a_writer_that_died_leaves_an_index_as_it_was(tmp_path: Path) -> None:
    vectors = clustered(100, 16, 3)
    index = made(tmp_path, vectors)
    with (tmp_path / index.head.vectors).open("ab") as file:
        file.write(b"half a vector")
    (tmp_path / "table-7").write_bytes(b"never named")
    again = Index.open(tmp_path)
    assert again is not None
    again.replace([101], [1], clustered(1, 16, 1, seed=3))
    after = reopened(again)
    assert len(after) == 101
    assert ids(after.search(clustered(1, 16, 1, seed=3), 1)[0]) == [101]
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        "index.json", "sums", "table", "vectors",
    ]  # fmt: skip


def test_a_reader_goes_on_with_what_it_has_opened(tmp_path: Path) -> None:
    vectors = clustered(100, 16, 3)
    reader, writer = made(tmp_path, vectors), Index.open(tmp_path)
    assert writer is not None
    writer.remove(range(1, 50))
    writer.replace([200], [1], vectors[:1])
    writer.save("2.h")
    assert ids(reader.search(vectors[:1], 3)[0]) == truth(vectors, vectors[0], 3)


# Kept up to date


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images", tmp_path / "others"))
    yield made
    made.catalog.dispose()


def number(filled: Filled) -> None:
    """As the janitor does."""
    while connect.transact(filled.catalog, feed.number):
        pass


def found_by(searcher: Searcher, filled: Filled, image: int, count: int = 100, size: int = 5) -> list[str]:
    """Paths, the nearest first."""
    return [one.image.path for one in searcher.nearest(filled.vectors([image], size), count)[0]]


def test_nothing_is_done_yet(filled: Filled) -> None:
    with pytest.raises(NothingMatchedError, match="no image is done yet"):
        Searcher(filled.catalog, filled.store)


def test_another_blob_and_one_that_is_not_there(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg"])
    searcher = Searcher(filled.catalog, filled.store, "pool5/7x7_s1")
    assert found_by(searcher, filled, 2, size=3) == ["b.jpg", "a.jpg"]
    with pytest.raises(ModelError, match=r"no blob 'fc8' in this catalog; it has: fc7, pool5/7x7_s1"):
        Searcher(filled.catalog, filled.store, "fc8")


def test_answers_follow_the_catalog_before_and_after_the_feed_is_numbered(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    number(filled)
    searcher = Searcher(filled.catalog, filled.store)
    assert found_by(searcher, filled, 1) == ["a.jpg", "b.jpg", "c.jpg"]
    filled.done(["d.jpg"])
    filled.gone("b.jpg")
    assert found_by(searcher, filled, 1) == ["a.jpg", "c.jpg"], "what is gone is gone at once"
    number(filled)
    assert found_by(searcher, filled, 1) == ["a.jpg", "c.jpg", "d.jpg"]
    assert found_by(searcher, filled, 1, count=2) == ["a.jpg", "c.jpg"]
    again = Searcher(filled.catalog, filled.store)
    assert found_by(again, filled, 1) == ["a.jpg", "c.jpg", "d.jpg"]


def test_a_new_version_is_not_answered_with_the_old_vector(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    number(filled)
    searcher = Searcher(filled.catalog, filled.store)
    assert found_by(searcher, filled, 2, count=1) == ["b.jpg"]
    changed = [FoundFile("b.jpg", 11, 2)]
    connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), changed)
    shard, made = filled.seal(filled.claim())
    filled.settle(Settlement(shard, made))
    assert found_by(searcher, filled, 2) == ["a.jpg", "c.jpg"], (
        "the feed does not say yet what its vector is now"
    )
    number(filled)
    assert found_by(searcher, filled, 2, count=1) == ["b.jpg"]


def test_many_that_are_gone_do_not_crowd_out_the_others(filled: Filled) -> None:
    filled.done([f"{name:03}.jpg" for name in range(60)])
    number(filled)
    searcher = Searcher(filled.catalog, filled.store)
    assert len(found_by(searcher, filled, 1)) == 60
    for name in range(1, 40):
        filled.gone(f"{name:03}.jpg")
    assert found_by(searcher, filled, 1, count=3) == ["000.jpg", "040.jpg", "041.jpg"]


def test_the_index_is_made_anew_where_it_must_be(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg"])
    number(filled)
    keeper = Keeper(filled.catalog, filled.store)
    first = keeper.update().head
    assert keeper.update().head == first, "there was nothing new"
    filled.done(["c.jpg"])
    number(filled)
    second = keeper.update().head
    assert (second.vectors, second.rows) == (first.vectors, 3)

    damaged(keeper.folder / second.vectors, 2)
    assert found_by(Searcher(filled.catalog, filled.store), filled, 3) == ["c.jpg", "b.jpg", "a.jpg"]
    third = keeper.update().head
    assert third.vectors != first.vectors

    other = replace(third, fingerprint="0" * 64)
    files.publish(keeper.folder, other, Stored(keeper.folder, third).table, None, None)
    assert keeper.open() is None
    assert keeper.update().head.vectors != third.vectors

    forget_all(filled)
    fourth = keeper.update().head
    assert (fourth.rows, len({first.vectors, third.vectors, fourth.vectors})) == (3, 3)


def forget_all(filled: Filled) -> None:
    """As if all changes were older than catalog.feed_days."""
    filled.done(["z.jpg"])
    filled.gone("z.jpg")
    number(filled)
    connect.transact(filled.catalog, feed.forget_old, -1.0)


def test_a_worn_index_is_made_anew(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "LEAST_LISTED", 3)
    filled.done([f"{name}.jpg" for name in range(10)])
    number(filled)
    keeper = Keeper(filled.catalog, filled.store)
    assert keeper.update().head.rows == 10
    for name in range(8):
        filled.gone(f"{name}.jpg")
    number(filled)
    assert keeper.update().head.rows == 2


@pytest.mark.usefixtures("small_limits")
def test_an_index_that_grows_gets_lists(filled: Filled) -> None:
    filled.done([f"{name:05}.jpg" for name in range(1000)])
    number(filled)
    keeper = Keeper(filled.catalog, filled.store)
    assert keeper.update().is_exact
    filled.done([f"more-{name:05}.jpg" for name in range(1000)])
    number(filled)
    searcher = Searcher(filled.catalog, filled.store)
    assert found_by(searcher, filled, 1200, count=1) == ["more-00199.jpg"]
    assert not searcher.index.is_exact
    assert len(searcher.index) == 2000


def test_vectors_of_a_bad_shard_are_left_out_until_it_is_repaired(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.done(["c.jpg"])
    number(filled)
    shard = min((filled.store / "shards").rglob("*.h5"))
    damaged(shard, shard.stat().st_size // 2)
    searcher = Searcher(filled.catalog, filled.store)
    assert found_by(searcher, filled, 3) == ["c.jpg"]
    keeper = Keeper(filled.catalog, filled.store)
    (keeper.folder / files.HEAD).unlink()
    (keeper.folder / files.HEAD).mkdir()
    assert len(keeper.update()) == 1
    assert list(searcher.unreadable) == [str(shard.relative_to(filled.store))]


def test_two_that_write_take_turns(filled: Filled) -> None:
    filled.done(["a.jpg"])
    keeper = Keeper(filled.catalog, filled.store)
    with files.locked(keeper.folder), pytest.raises(IndexBusyError), files.locked(keeper.folder, wait=False):
        pass
    assert len(keeper.update()) == 1


def test_all_indexes_that_there_are_are_kept(filled: Filled) -> None:
    filled.done(["a.jpg"])
    number(filled)
    update_all(filled.catalog, filled.store)
    folders = sorted(path.name for path in files.index_folder(filled.store).iterdir())
    assert [name.rpartition("-")[0] for name in folders] == ["fc7"]
    second = Keeper(filled.catalog, filled.store, "pool5/7x7_s1")
    second.update()
    filled.done(["b.jpg"])
    number(filled)
    update_all(filled.catalog, filled.store)
    assert files.read_head(second.folder).rows == 2  # type: ignore[union-attr]


# Duplicates


@pytest.mark.parametrize("way", ["all", "listed", "coded"])
def test_the_same_pairs_are_found_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    random = np.random.default_rng(3)
    vectors = clustered(3000, 24, 300)
    copies = random.permutation(3000)[:120].reshape(40, 3)
    for one, near, equal in copies:
        vectors[near] = vectors[one] + 0.01 * random.standard_normal(24).astype(np.float32)
        vectors[equal] = vectors[one]
    index = made(tmp_path, vectors, "float16" if way == "coded" else "float32")
    if way == "coded":
        index.make_lists()
    if way != "all":
        monkeypatch.setattr(pairs, "ALL_PAIRS", 10)
    found = {tuple(sorted(rows.tolist())) for rows in pairs.components(index, 0.2)}
    assert found == {tuple(sorted(rows.tolist())) for rows in copies}
    equal = {tuple(sorted(rows.tolist())) for rows in pairs.components(index, 0.0)}
    assert equal == {tuple(sorted((one, other))) for one, _, other in copies.tolist()}


def test_groups_begin_with_the_best_and_are_within_the_distance_of_it(filled: Filled) -> None:
    filled.done(["a.png", "b.png", "c.png", "d.png", "e.jpg"])
    for name, side in (("a.png", 10), ("b.png", 30), ("c.png", 20)):
        Image.new("RGB", (side, side)).save(filled.roots[0] / name)
    number(filled)
    finder = duplicates.Finder(filled.catalog, filled.store)
    step = float(np.linalg.norm(filled.vectors([1], 5) - filled.vectors([2], 5)))
    groups = finder.groups(step * 1.01)
    assert [[one.image.path for one in group] for group in groups] == [
        ["b.png", "c.png", "a.png"],  # of equal distances, the better one first
        ["d.png", "e.jpg"],  # d is near to c, and not to b
    ]
    assert [one.distance for one in groups[0]] == pytest.approx([0.0, step, step], rel=1e-6)
    assert [(one.width, one.height) for one in groups[0]] == [(30, 30), (20, 20), (10, 10)]
    assert [one.size for one in groups[1]] == [0, 0], "their files are not there"
    assert finder.groups(0.0) == []
    filled.gone("e.jpg")
    assert len(duplicates.Finder(filled.catalog, filled.store).groups(step * 1.01)) == 1
