"""Golden vectors of a trained net's shape: alike in both engines, and unlike under every usual mistake."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import nets
from featd.config import ModelConfig, PreprocessConfig
from featd.engines.precision import FLOAT32, TOLERANCES
from featd.errors import EngineError
from featd.preprocess.variants import variants
from featd.worker import golden
from featd.worker.golden import Golden
from featd.worker.model import Model, load_model, prepared_as

BLOBS = ("fc7", "pool5")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("golden")
    definition = folder / "caffenet.prototxt"
    definition.write_text(nets.caffenet_prototxt())
    nets.random_weights(definition, folder / "caffenet.caffemodel")
    return {"net": str(definition), "weights": folder / "caffenet.caffemodel", "blobs": BLOBS}


def load(settings: dict[str, Any], engine: str, **preprocess: Any) -> Model:
    model = ModelConfig(engine=engine, **settings)  # type: ignore[arg-type]
    return load_model(model, PreprocessConfig(**preprocess), "float32", "cpu", 1)


@pytest.fixture(scope="module")
def shallow(settings: dict[str, Any]) -> Model:
    return load({**settings, "blobs": ("pool1",)}, "onnxruntime")


def test_the_engines_pass_each_others_golden_vectors(settings: dict[str, Any]) -> None:
    nets.real_caffe()
    caffe, onnxruntime = load(settings, "caffe"), load(settings, "onnxruntime")
    theirs, ours = Golden(caffe, 8).run(), Golden(onnxruntime, 8).run()
    Golden(onnxruntime, 8).check(golden.pack(theirs), ours)
    Golden(caffe, 8).check(golden.pack(ours), theirs)
    for blob in BLOBS:
        # A tenth of the tolerance: there is room for another device.
        assert golden.distances(ours[blob], theirs[blob]).max() < TOLERANCES[FLOAT32] / 10


@pytest.mark.parametrize(
    "mistake",
    [
        'preset "pycaffe"',
        'channels = "rgb"',
        "a mean in the order rgb",
        "no mean",
        "scale 1/255",
        'interpolation = "nearest"',
        'crops = "ten"',
    ],
)
def test_the_usual_mistakes_are_caught_and_named(shallow: Model, mistake: str) -> None:
    then = Golden(prepared_as(shallow, dict(variants(shallow.preprocess))[mistake]), 8).run()
    with pytest.raises(EngineError, match=f"the catalog's vectors match {re.escape(mistake)}"):
        Golden(shallow, 8).check(golden.pack(then), Golden(shallow, 8).run())


def test_a_picture_that_came_out_wrong_is_caught(shallow: Model) -> None:
    mine = Golden(shallow, 8).run()
    held = {blob: values.copy() for blob, values in mine.items()}
    held["pool1"][5] = np.roll(held["pool1"][5], 1)
    with pytest.raises(EngineError, match="1 of 8 built-in pictures"):
        Golden(shallow, 8).check(golden.pack(held), mine)
