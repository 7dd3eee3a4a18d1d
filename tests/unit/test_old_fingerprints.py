"""A configuration keeps its fingerprint from version to version: a catalog takes vectors of no other.

tests/fixtures/make_0_1_0.py says how the configurations were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featd import config
from featd.worker.model import load_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGURATIONS = sorted(FIXTURES.glob("*/fingerprints/*.toml"))


def test_every_recorded_fingerprint_has_its_configuration() -> None:
    recorded = {
        file.with_name(f"{name}.toml")
        for file in FIXTURES.glob("*/fingerprints/expected.json")
        for name in json.loads(file.read_text(encoding="utf-8"))
    }
    assert recorded
    assert recorded == set(CONFIGURATIONS)


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_the_fingerprint_is_that_of_the_earlier_version(file: Path) -> None:
    expected = json.loads((file.parent / "expected.json").read_text(encoding="utf-8"))[file.stem]
    settings = config.load(file)
    model = load_model(settings.model, settings.preprocess, settings.store.dtype, "cpu", 1)
    assert model.spec == expected["spec"]
    assert model.fingerprint == expected["fingerprint"]
