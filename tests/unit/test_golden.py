"""Golden vectors: the mistakes that they are there to catch, and the small differences that they must bear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.base import Batch, Engine, Vectors
from featd.errors import EngineError
from featd.worker import golden
from featd.worker.golden import Golden
from featd.worker.model import Model, differences, fingerprint, load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ModelConfig(), PreprocessConfig(), "float32", "cpu", 1)


@pytest.fixture(scope="module")
def coloured(model: Model) -> Model:
    """gist does not look at brightness and hardly at colour; this one gives out the pixels."""

    class Pixels:
        name, device, blobs = "fake", "cpu", {"any": 1}
        input_shape = (3, 128, 128)

        def forward(self, batch: Batch) -> dict[str, Vectors]:
            return {"pixels": batch.reshape(len(batch), -1).copy()}

    return replace(model, engine=cast(Engine, Pixels()))


def returns(*answers: dict[str, Vectors]) -> Engine:
    """An engine that gives these answers one after the other, the last for ever."""
    left = list(answers)

    class Fake:
        name, device, blobs, parallel = "fake", "cpu", {"any": 1}, 1
        input_shape = (3, 128, 128)

        def forward(self, batch: Batch) -> dict[str, Vectors]:
            return left.pop(0) if len(left) > 1 else left[0]

    return cast(Engine, Fake())


def made(model: Model, **preprocess: Any) -> dict[str, Vectors]:
    return Golden(replace(model, preprocess=replace(model.preprocess, **preprocess)), 8).run()


def test_the_same_net_makes_the_same_vectors(model: Model) -> None:
    Golden(model, 8).check(golden.pack(made(model)), made(model))


def test_rounding_is_borne(model: Model) -> None:
    noisy = {blob: values * np.float32(1 + 1e-5) for blob, values in made(model).items()}
    Golden(model, 8).check(golden.pack(made(model)), noisy)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"mean": (0.0, 0.0, 0.0)}, "mean"),
        ({"channels": "rgb"}, "channel"),
        ({"interpolation": "nearest"}, "interpolation"),
    ],
)
def test_the_mistake_that_explains_the_difference_is_named(
    coloured: Model, then: dict[str, Any], said: str
) -> None:
    stored = golden.pack(made(coloured, **then))
    with pytest.raises(EngineError, match=f"another preprocessing: the catalog's vectors match .*{said}"):
        Golden(coloured, 8).check(stored, made(coloured))


def test_what_no_mistake_explains_is_laid_on_device_and_libraries(model: Model) -> None:
    vectors = made(model)
    stored = golden.pack(vectors)
    vectors["gist"][3, :7] = 0
    sick = replace(model, engine=returns(vectors))
    with pytest.raises(
        EngineError, match=r"1 of 8 built-in pictures .* the device, the engine or one of its"
    ):
        Golden(sick, 8).check(stored, Golden(sick, 8).run())


def test_a_device_that_answers_twice_in_two_ways_is_sick(model: Model) -> None:
    vectors = made(model)
    wavering = replace(model, engine=returns(vectors, {"gist": vectors["gist"] + 1}))
    with pytest.raises(EngineError, match="gave different results"):
        Golden(wavering, 8).check(golden.pack({"gist": vectors["gist"] + 2}), Golden(wavering, 8).run())


def test_pictures_go_through_in_batches_of_the_worker(model: Model) -> None:
    """A batch that was made smaller for a lease or a small GPU holds for these pictures too."""
    sizes: list[int] = []
    beats: list[int] = []

    class Counts:
        input_shape = (3, 128, 128)

        def forward(self, batch: Batch) -> dict[str, Vectors]:
            sizes.append(len(batch))
            return model.engine.forward(batch)

    counted = replace(model, engine=cast(Engine, Counts()))
    pictures = Golden(counted, 3)
    pictures.beat = lambda: beats.append(len(sizes))
    vectors = pictures.run()
    assert (sizes, beats) == ([3, 3, 2], [0, 1, 2])
    Golden(model, 8).check(golden.pack(vectors), made(model))


def test_of_a_wide_blob_a_sample_is_kept(model: Model) -> None:
    wide = {"conv": np.random.default_rng(0).standard_normal((8, 200_000), np.float32)}
    kept = Golden(replace(model, engine=returns(wide)), 8).run()["conv"]
    assert kept.shape == (8, 50_000)
    assert np.array_equal(kept[:, 1], wide["conv"][:, 4])


def test_a_net_of_nans_is_no_net(model: Model) -> None:
    nans = returns({"gist": np.full((8, 4), np.nan, np.float32)})
    with pytest.raises(EngineError, match="not finite"):
        Golden(replace(model, engine=nans), 8).run()


def test_the_fingerprint_is_of_what_decides_the_vectors(model: Model) -> None:
    other = {**model.spec, "dtype": "float16"}
    assert fingerprint(other) != model.fingerprint
    assert differences(model.spec, other) == 'dtype: "float32" -> "float16"'
    assert fingerprint(dict(reversed(model.spec.items()))) == model.fingerprint
