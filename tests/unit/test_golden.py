"""Golden vectors: the mistakes that they are there to catch, and the small differences that they must bear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featd.config import Settings
from featd.errors import EngineError
from featd.worker import golden
from featd.worker.model import Model, differences, fingerprint, load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(Settings(), "cpu", 1)


def test_the_same_net_makes_the_same_vectors(model: Model) -> None:
    stored = golden.pack(golden.run_golden(model, 4).vectors)
    golden.check(stored, golden.run_golden(model, 8).vectors)


def test_rounding_is_borne(model: Model) -> None:
    vectors = golden.run_golden(model, 4).vectors
    noisy = {blob: values * np.float32(1 + 1e-5) for blob, values in vectors.items()}
    golden.check(golden.pack(vectors), noisy)


@pytest.mark.parametrize(
    "mistake",
    [
        {"scale": 1.05},
        {"interpolation": "nearest"},
        {"resize": "short_side"},
    ],
)
def test_another_preprocessing_is_caught(model: Model, mistake: dict[str, object]) -> None:
    stored = golden.pack(golden.run_golden(model, 4).vectors)
    wrong = replace(model, preprocess=replace(model.preprocess, **mistake))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="golden vectors"):
        golden.check(stored, golden.run_golden(wrong, 4).vectors)


def test_a_sick_device_is_caught(model: Model) -> None:
    vectors = golden.run_golden(model, 4).vectors
    stored = golden.pack(vectors)
    for values in vectors.values():
        values[3, :7] = 0
    with pytest.raises(EngineError, match="nothing was claimed"):
        golden.check(stored, vectors)


def test_a_net_of_nans_is_no_net(model: Model) -> None:
    class Sick:
        def forward(self, batch: object) -> dict[str, object]:
            return {"gist": np.full((8, 4), np.nan, np.float32)}

    with pytest.raises(EngineError, match="not finite"):
        golden.run_golden(replace(model, engine=Sick()), 4)  # type: ignore[arg-type]


def test_the_fingerprint_is_of_what_decides_the_vectors(model: Model) -> None:
    other = {**model.spec, "dtype": "float16"}
    assert fingerprint(other) != model.fingerprint
    assert differences(model.spec, other) == 'dtype: "float32" -> "float16"'
    assert fingerprint(dict(reversed(model.spec.items()))) == model.fingerprint
