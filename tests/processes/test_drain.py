"""The main job from end to end: a folder of photographs and odd files, real processes, both engines and databases."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import nets
from corpus import Expected, write_corpus
from featd.paths import from_catalog, to_catalog
from featd.states import State
from needs import need_caffe
from photographs import SHARED, write_photographs
from running import Instance, check_promise, live_vectors, make_instance

PHOTOGRAPHS = 120
MEAN = np.array([104.0, 117.0, 123.0], np.float32)

Vectors = dict[bytes, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, Expected]]:
    """A folder with photographs and the table of odd files; raw path -> what it must become."""
    folder = tmp_path_factory.mktemp("pictures") / "images"
    photographs = write_photographs(folder, PHOTOGRAPHS)
    expected = {os.fsencode(path.relative_to(folder)): Expected("done") for path in photographs}
    odd = write_corpus(folder / "odd", folder.parent / "outside.jpg")
    return folder, expected | {b"odd/" + name: fate for name, fate in odd.items()}


@pytest.fixture(scope="module")
def caffenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """CaffeNet's definition and random but fixed weights."""
    folder = tmp_path_factory.mktemp("caffenet")
    shared = SHARED / "caffenet_deploy.prototxt"
    prototxt = folder / "deploy.prototxt"
    prototxt.write_text(shared.read_text() if shared.is_file() else nets.caffenet_prototxt())
    weights = folder / "random.caffemodel"
    nets.random_weights(prototxt, weights, seed=7)
    return prototxt, weights


@pytest.fixture(scope="module")
def reference(pictures: tuple[Path, dict[bytes, Expected]], caffenet: tuple[Path, Path]) -> Vectors:
    """A plain loop: one image decoded at a time, one image at a time through real Caffe."""
    need_caffe()
    import caffe

    folder, expected = pictures
    caffe.set_mode_cpu()
    net = caffe.Net(str(caffenet[0]), str(caffenet[1]), caffe.TEST)
    net.blobs["data"].reshape(1, 3, 227, 227)
    vectors = {}
    for name, fate in expected.items():
        if fate.state != "done":
            continue
        data = np.frombuffer((folder / os.fsdecode(name)).read_bytes(), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert picture is not None, name
        picture = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_LINEAR)[14:241, 14:241]
        net.blobs["data"].data[0] = (picture.astype(np.float32) - MEAN).transpose(2, 0, 1)
        net.forward()
        vectors[name] = net.blobs["fc7"].data[0].copy()
    return vectors


@pytest.fixture(params=["onnxruntime", "caffe"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "caffe":
        need_caffe()
    return request.param


def test_a_drain_makes_the_vectors_that_caffe_makes(
    engine: str,
    database_url: str,
    tmp_path: Path,
    pictures: tuple[Path, dict[bytes, Expected]],
    caffenet: tuple[Path, Path],
    reference: Vectors,
) -> None:
    folder, expected = pictures
    # Each engine, each database and each number of workers meets each of the others.
    workers = 1 if (engine == "caffe") == database_url.startswith("sqlite") else 2
    instance = make_instance(
        tmp_path / "instance",
        folder,
        database_url,
        model__engine=engine,
        model__net=str(caffenet[0]),
        model__weights=str(caffenet[1]),
        model__blobs=["fc7"],
        workers__devices=["cpu"] * workers,
        workers__batch=16,
        store__shard_rows=150,
        retry__backoff_seconds=0.1,
    )
    result = instance.run("run", "--drain", plain_user=True)
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(
        r"drained: [\d,]+ images done in [\d.,]+ s, [\d.,]+ images/s on average; \d+ failed", result.stderr
    )

    compare_states(instance, expected)
    states = check_promise(instance)
    status = instance.status()
    assert status["images"] == {"total": states.total(), **{str(state): states[state] for state in State}}
    assert status["shards"]["rows"] == states["done"]

    live = live_vectors(instance)
    made = {from_catalog(path): vector for (_, path), vector in live.items()}
    assert set(made) == set(reference)
    worst = max(
        np.linalg.norm(made[name] - reference[name]) / np.linalg.norm(reference[name]) for name in reference
    )
    assert worst < 1e-5


def compare_states(instance: Instance, expected: dict[bytes, Expected]) -> None:
    """Every file stands in the catalog as the table says, and nothing else does."""
    rows = {row.path: (row.state, row.error_kind) for row in instance.rows()}
    wanted = {to_catalog(name): (fate.state, fate.kind) for name, fate in expected.items() if fate.state}
    assert rows == wanted
