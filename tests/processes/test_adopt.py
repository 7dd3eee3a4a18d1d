"""`featd adopt` with real processes: vectors that a script made are live, bit for bit, and nothing is made twice; what
is wrong, in doubt or changed is left, and said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import skimage
from skimage.transform import resize

from featd.adopt import adopt as adopting
from featd.adopt.chosen import choose
from featd.adopt.outcome import Outcome, Why
from featd.adopt.places import Places
from featd.adopt.sample import draw_and_compare
from featd.adopt.script_file import ScriptFile
from featd.catalog import connect, leases
from featd.janitor.rescue import Rescue
from featd.states import Lease, RetryPolicy
from nets import input_layer, layer, real_caffe, saved
from photographs import write_photographs
from running import Instance, check_no_vector_twice, check_promise, drain, kill_all, make_instance, wait_for
from scripts import Vectors, same, script_file, vectors_of

PHOTOGRAPHS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vectors]:
    """A root, and the vectors of its images."""
    folder = tmp_path_factory.mktemp("made")
    write_photographs(folder / "images", PHOTOGRAPHS)
    for path in (folder / "images").rglob("*.*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    instance = small(folder / "instance", folder / "images")
    drain(instance)
    return folder / "images", vectors_of(instance)


def small(folder: Path, images: Path, url: str = "sqlite:///featd.db", **keys: Any) -> Instance:
    keys = {
        "workers__devices": ["cpu"],
        "workers__batch": 4,
        "workers__decoders": 1,
        "store__shard_rows": 5,
        **keys,
    }
    return make_instance(folder, images, url, **keys)


def whole(folder: Path, made: tuple[Path, Vectors], vectors: Vectors | None = None) -> Path:
    """One file of all vectors, with absolute names."""
    found = vectors or made[1]
    return script_file(
        folder / "whole.h5", [f"{made[0]}/{name}" for name in found], np.stack(list(found.values()))
    )


def adopt(instance: Instance, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    result = instance.run("adopt", "--json", *map(str, arguments))
    assert result.returncode == code, result.stdout + result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def refused(instance: Instance, *arguments: str | Path) -> tuple[int, str]:
    """The code and the words with which nothing is adopted."""
    result = instance.run("adopt", *map(str, arguments))
    assert "Traceback" not in result.stderr
    assert not instance.rows()
    assert not list((instance.settings.store.path / "shards").rglob("*.h5*"))
    assert not instance.live_workers()
    return result.returncode, result.stderr


def exported(instance: Instance) -> Vectors:
    out = instance.folder / "out"
    result = instance.run("export", str(out), "--force")
    assert result.returncode == 0, result.stderr
    return dict(zip((out / "names.txt").read_text().splitlines(), np.load(out / "features.npy"), strict=True))


def test_what_a_script_made_is_live_and_only_the_rest_is_extracted(
    tmp_path: Path, database_url: str, made: tuple[Path, Vectors]
) -> None:
    root, vectors = made
    names = sorted(vectors)[:18]
    feats = np.stack([vectors[name] for name in names])
    files = [
        script_file(tmp_path / "part0.h5", [f"{root}/{name}" for name in names[:7]], feats[:7]),
        script_file(tmp_path / "part1.h5", names[7:12], feats[7:12].reshape(5, -1, 1, 1), fixed=True),
        script_file(
            tmp_path / "part2.h5",
            [Path(name).name for name in names[12:]],
            feats[12:].astype(float),
            compression="lzf",
        ),
    ]
    instance = small(tmp_path / "instance", root, database_url)
    plan = adopt(instance, "--dry-run", *files)
    assert (plan["adopted"], plan["left"], instance.rows()) == (18, {}, [])
    done = adopt(instance, *files, "--sample", "7", "--seed", "3")
    assert (done["adopted"], done["already_there"], done["left"]) == (18, 0, {})
    assert len(done["sample"]["compared"]) == 7
    assert done["sample"]["largest"] < 1e-6
    assert check_promise(instance) == {"done": 18}
    assert not instance.live_workers()
    assert instance.status()["shards"]["count"] == 4, "shards are full: only the last may have fewer rows"
    explained = instance.run("explain", f"{root}/{names[0]}").stdout
    assert "made by   a script; adopted from its file" in explained
    with h5py.File(next((instance.settings.store.path / "shards").rglob("*.h5"))) as shard:
        assert shard.attrs["engine"] == "adopted"

    again = adopt(instance, *files)
    assert (again["adopted"], again["already_there"]) == (0, 18)
    assert same(exported(instance), {name: vectors[name] for name in names})
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    check_no_vector_twice(instance)
    assert same(exported(instance), vectors)
    assert instance.run("verify", "--against-roots").returncode == 0
    *changes, token = map(json.loads, instance.run("changes").stdout.splitlines())
    assert {change["path"] for change in changes} == set(vectors)
    assert token.keys() == {"token"}
    assert instance.run("compact").returncode == 0
    assert check_promise(instance)["done"] == PHOTOGRAPHS
    assert same(vectors_of(instance), vectors)
    assert "a script" in instance.run("explain", f"{root}/{names[0]}").stdout


def test_the_feed_tells_of_what_is_adopted(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    root, vectors = made
    instance = small(tmp_path / "instance", root)
    token = json.loads(instance.run("changes").stdout)["token"]
    adopt(instance, whole(tmp_path, made))
    drain(instance)
    *changes, _ = map(json.loads, instance.run("changes", "--since", token).stdout.splitlines())
    assert {(change["op"], change["path"]) for change in changes} == {("upsert", name) for name in vectors}


def script_of_the_docs(net: str, weights: Path, paths: list[Path], out: Path) -> None:
    """What docs/from-a-script.md shows, with the functions that it names for scikit-image of today."""
    caffe = real_caffe()
    model = caffe.Net(net, str(weights), caffe.TEST)
    model.blobs["data"].reshape(1, 3, 40, 40)
    transformer = caffe.io.Transformer({"data": (1, 3, 40, 40)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", np.array([104.0, 117.0, 123.0]))
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    feats = np.zeros((len(paths), 8), "float32")
    for row, path in enumerate(paths):
        pixels = cv2.imread(str(path))
        image = skimage.img_as_float(pixels[:, :, ::-1]).astype(np.float32)
        model.blobs["data"].data[0] = transformer.preprocess("data", image)
        model.forward()
        feats[row] = model.blobs["fc"].data[0]
    script_file(out, list(map(str, paths)), feats)


def test_a_script_with_real_caffe(
    tmp_path: Path, made: tuple[Path, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_caffe().io, "resize", partial(resize, anti_aliasing=False), raising=False)
    text = (
        input_layer(3, 40, 40)
        + layer("conv", "Convolution", "data", "convolution_param { num_output: 6 kernel_size: 5 stride: 2 }")
        + layer("relu", "ReLU", "conv", top="conv")
        + layer("fc", "InnerProduct", "conv", "inner_product_param { num_output: 8 }")
    )
    model = saved(text, tmp_path, ("fc",))
    assert model.weights is not None
    paths = sorted(made[0].rglob("*.*"))
    script_of_the_docs(str(model.net), model.weights, paths, tmp_path / "part0.h5")
    keys = {
        "model__net": model.net,
        "model__weights": str(model.weights),
        "model__blobs": ["fc"],
        "model__engine": "onnxruntime",
        "preprocess__mean": [104.0, 117.0, 123.0],
    }
    wrong = small(tmp_path / "wrong", made[0], **keys, preprocess__preset="fast")
    code, words = refused(wrong, tmp_path / "part0.h5")
    assert code == 78
    assert "24 of 24 images of the sample have other vectors" in words
    assert 'match preset "pycaffe"' in words
    assert "docs/nets.md" in words
    right = small(tmp_path / "right", made[0], **keys, preprocess__preset="pycaffe")
    done = adopt(right, tmp_path / "part0.h5")
    assert done["adopted"] == PHOTOGRAPHS
    assert done["sample"]["largest"] < 1e-5
    with h5py.File(tmp_path / "part0.h5") as file:
        expected = dict(
            zip([str(path.relative_to(made[0])) for path in paths], file["feats"][:], strict=True)
        )
    assert same(vectors_of(right), expected)
    drain(right)
    assert check_promise(right) == {"done": PHOTOGRAPHS}


@pytest.mark.parametrize("order", ["rows", "vectors"])
def test_vectors_of_other_images_are_refused(tmp_path: Path, made: tuple[Path, Vectors], order: str) -> None:
    """One row too far, as a script that skips a bad file has it; or vectors of something else."""
    root, vectors = made
    names = sorted(vectors)
    wrong = np.roll(np.stack([vectors[name] for name in names]), 1, axis=0)
    if order == "vectors":
        wrong = np.random.default_rng(1).normal(size=wrong.shape).astype(np.float32)
    instance = small(tmp_path / "instance", root)
    code, words = refused(instance, script_file(tmp_path / "x.h5", names, wrong))
    assert (code, "Usually the preprocessing or the blob" in words) == (78, True)
    drain(instance)
    assert same(vectors_of(instance), vectors)


def test_one_wrong_vector_in_the_sample_is_enough(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    root, vectors = made
    name = sorted(vectors)[5]
    other = {**vectors, name: vectors[name] * np.float32(1.01)}
    code, words = refused(small(tmp_path / "instance", root), whole(tmp_path, made, other))
    assert (code, "1 of 24 images" in words, f"{name} 0.0099" in words) == (78, True, True)
    assert "decoded differently" in words


def test_what_is_left_is_told_row_by_row(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    """Names in doubt, files that changed, vectors that are none; the rest is adopted, and a drain does what is left."""
    root, vectors = tmp_path / "images", made[1]
    subprocess.run(["cp", "-a", made[0], root], check=True)
    names = sorted(vectors)
    feats = np.stack([vectors[name] for name in names])
    feats[3, 2], feats[4, 0] = np.nan, np.inf
    (root / "other").mkdir()
    subprocess.run(["cp", "-a", root / names[0], root / "other"], check=True)
    path = script_file(
        tmp_path / "part0.h5",
        [Path(name).name for name in names] + ["none.jpg", "x/../y.jpg", Path(names[1]).name],
        np.concatenate([feats, feats[:2], feats[1:2]]),
    )
    late = (root / names[2]).stat()
    os.utime(root / names[2], ns=(late.st_atime_ns, path.stat().st_mtime_ns + 1))
    (root / names[6]).write_bytes(b"no picture")
    os.utime(root / names[6], (1_700_000_000, 1_700_000_000))
    instance = small(tmp_path / "instance", root, store__shard_rows=4096)
    report = tmp_path / "left.jsonl"
    plan = adopt(instance, path, "--dry-run", code=4)
    done = adopt(instance, path, "--report", report, code=4)
    expected = {"in doubt": 1, "newer": 1, "not finite": 2, "not found": 1, "not a path": 1}
    assert plan["left"] == done["left"] == {why.replace(" ", "_"): count for why, count in expected.items()}
    assert (plan["adopted"], done["adopted"], done["named_again"]) == (20, 20, 1)
    assert list(done["sample"]["unreadable"]) in ([names[6]], [])
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["row"]: line["why"] for line in lines} == {
        0: "in doubt", 2: "newer", 3: "not finite", 4: "not finite", 24: "not found", 25: "not a path"
    }  # fmt: skip
    assert lines[0]["file"] == str(path)
    told = instance.run("adopt", str(path))
    assert told.returncode == 4
    assert "already there: 20" in told.stdout
    assert "not finite: 2" in told.stdout
    assert "--report FILE" in told.stderr
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 1}
    found = vectors_of(instance)
    assert all(np.allclose(found[name], vectors[name], atol=1e-5) for name in names if name != names[6])


def test_when_the_vectors_were_made(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    instance = small(tmp_path / "instance", made[0])
    path = whole(tmp_path, made)
    code, words = refused(instance, path, "--made-at", "2001-01-01T00:00")
    assert (code, "24 newer" in words) == (3, True)
    os.utime(path, (1, 1))
    assert refused(instance, path)[0] == 3
    assert adopt(instance, path, "--made-at", "1h")["adopted"] == PHOTOGRAPHS


def test_an_image_that_is_changed_meanwhile_keeps_what_featd_made_of_it(
    tmp_path: Path, made: tuple[Path, Vectors]
) -> None:
    root, vectors = tmp_path / "images", made[1]
    subprocess.run(["cp", "-a", made[0], root], check=True)
    instance = small(tmp_path / "instance", root)
    names = sorted(vectors)
    path = script_file(tmp_path / "x.h5", names, np.stack([vectors[name] for name in names]))
    outcome = Outcome()
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with ScriptFile(path, "feats", "names") as file, Places(instance.settings.roots[0]) as places:
        chosen = choose(instance.plan("worker-0"), instance.settings.roots[0], [file])
        places.scan(lambda *told: None)
        places.match([file], outcome, lambda *told: None)
        sample = draw_and_compare(chosen, [file], places, 2, 1)
        sample.require_agreement()
        (root / names[0]).write_bytes((root / names[1]).read_bytes())
        drain(instance)
        before = instance.rows()
        silent = (lambda *told: None, lambda: False)
        adopting.adopt(catalog, chosen, sample.identity, [file], places, outcome, *silent)
    catalog.dispose()
    assert (outcome.adopted, outcome.there, outcome.left) == (0, PHOTOGRAPHS - 1, {Why.NEWER: 1})
    assert sorted(instance.rows()) == sorted(before)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_what_the_store_cannot_keep_is_left(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    root, vectors = made
    names = sorted(vectors)
    feats = np.stack([vectors[name] for name in names]).astype(np.float64)
    feats[1, 0], feats[2, 0] = 70_000, 1e300
    instance = small(tmp_path / "instance", root, store__dtype="float16")
    path = script_file(tmp_path / "x.h5", names, feats)
    done = adopt(instance, path, code=4)
    assert (done["adopted"], done["left"]) == (PHOTOGRAPHS - 2, {"not_finite": 2})
    found = vectors_of(instance)
    assert all(np.array_equal(found[name], vectors[name].astype(np.float16)) for name in found)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def link_out(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["passwd"] = h5py.ExternalLink("/etc/passwd", "x")


def narrower(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        values = file["feats"][:, :-1]
        del file["feats"]
        file["feats"] = values


def no_hdf5(path: Path) -> None:
    path.write_text("not HDF5")


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (cut, 1, "not a readable HDF5 file"),
        (link_out, 1, "link to somewhere else"),
        (no_hdf5, 1, "not a readable HDF5 file"),
        (narrower, 78, "its vectors have"),
        (Path.unlink, 1, "No such file"),
    ],
)
def test_a_file_that_cannot_be_taken(
    tmp_path: Path, made: tuple[Path, Vectors], harm: Callable[[Path], object], code: int, words: str
) -> None:
    """Nothing is adopted, also not from a good file beside it."""
    instance = small(tmp_path / "instance", made[0])
    good, bad = whole(tmp_path / "good", made), whole(tmp_path / "bad", made)
    harm(bad)
    found = refused(instance, good, bad)
    assert found[0] == code
    assert words in found[1]
    assert str(bad) in found[1]


def test_what_a_configuration_cannot_take(tmp_path: Path, made: tuple[Path, Vectors]) -> None:
    root = made[0]
    path = whole(tmp_path, made)
    (tmp_path / "second").mkdir()
    write_photographs(tmp_path / "second", 2)
    two = make_instance(tmp_path / "two", [root, tmp_path / "second"], workers__devices=["cpu"])
    assert refused(two, path)[0] == 2
    assert refused(two, path, "--root", tmp_path)[0] == 2
    code, words = refused(two, path, "--root", tmp_path / "second")
    assert (code, "24 not found" in words) == (3, True)
    assert refused(two, path, "--root", root, "--feats", "fc7")[0] == 1
    assert refused(two, path, "--root", root, "--made-at", "soon")[0] == 2
    assert adopt(two, path, "--root", root)["adopted"] == PHOTOGRAPHS

    text = input_layer(3, 8, 8) + "".join(
        layer(name, "InnerProduct", "data", "inner_product_param { num_output: 4 }") for name in ("a", "b")
    )
    model = saved(text, tmp_path, ("a", "b"))
    keys = {"model__net": model.net, "model__weights": str(model.weights), "model__blobs": ["a", "b"]}
    blobs = small(tmp_path / "blobs", root, **keys)
    code, words = refused(blobs, path)
    assert (code, "model.blobs: a, b" in words) == (78, True)


def test_beside_a_running_featd(tmp_path: Path, database_url: str, made: tuple[Path, Vectors]) -> None:
    """Images that a worker has done meanwhile keep its vector; none is done twice."""
    root, vectors = tmp_path / "images", made[1]
    (root / "first").mkdir(parents=True)
    write_photographs(root / "first", 2)
    instance = small(tmp_path / "instance", root, database_url)
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") == 2, 60, "the first images")
        subprocess.run(["cp", "-a", *made[0].iterdir(), root], check=True)
        path = script_file(tmp_path / "x.h5", list(vectors), np.stack(list(vectors.values())))
        done = json.loads(instance.run("adopt", "--json", str(path)).stdout)
        assert done["adopted"] + done["already_there"] + done["left"].get("in_work", 0) == PHOTOGRAPHS
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS + 2, 60, "all images")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 2}
    check_no_vector_twice(instance)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_between_two_transactions(
    tmp_path: Path, made: tuple[Path, Vectors], number: signal.Signals
) -> None:
    root, vectors = tmp_path / "images", {}
    root.mkdir()
    for copy in map(str, range(5)):
        subprocess.run(["cp", "-a", made[0], root / copy], check=True)
        vectors |= {f"{copy}/{name}": vector for name, vector in made[1].items()}
    instance = small(tmp_path / "instance", root, store__shard_rows=2)
    files = [
        script_file(tmp_path / f"{at:03}.h5", [name], vectors[name][None])
        for at, name in enumerate(sorted(vectors))
    ]
    process = instance.start("adopt", "--sample", "2", *map(str, files))
    try:
        wait_for(lambda: instance.count("done") >= 2, 60, "the first shard")
        process.send_signal(number)
        code = process.wait(60)
    finally:
        kill_all(process)
    told = (instance.folder / "stderr").read_text()
    assert (code, "interrupted: what is adopted stays" in told) == (130, True), told
    states = check_promise(instance)
    assert not instance.live_workers(), "its lease has ended"
    assert 2 <= states["done"] < len(vectors)
    assert not states["claimed"]
    done = adopt(instance, *files)
    assert done["already_there"] == states["done"]
    assert done["adopted"] == len(vectors) - states["done"]
    assert same(vectors_of(instance), vectors)


def test_a_start_leaves_an_adoption_at_work_alone_and_ends_a_dead_one(
    tmp_path: Path, made: tuple[Path, Vectors]
) -> None:
    instance = small(tmp_path / "instance", made[0])
    catalog = connect.open_catalog(instance.settings.catalog.url)
    dead = subprocess.Popen(["true"])
    dead.wait()

    def opened(pid: int, device: str) -> Lease:
        given = {"host": "here", "pid": pid, "device": device, "engine": "adopted", "lease_seconds": 60.0}
        return connect.transact(catalog, partial(leases.open_lease, **given))

    at_work, killed = opened(os.getpid(), leases.ADOPTION), opened(dead.pid, leases.ADOPTION)
    worker = opened(os.getpid(), "cpu:0")
    Rescue(catalog, tmp_path, "here", RetryPolicy()).end_all_of_this_seat()
    with connect.reading(catalog) as conn:
        over = [leases.is_over(conn, lease) for lease in (at_work, killed, worker)]
        assert leases.live_hosts(conn) == set()
    catalog.dispose()
    assert over == [False, True, True]
