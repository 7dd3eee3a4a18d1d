"""What people mistake a preprocessing for: each mistake once, none the thing itself, all to be tried as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from featd.config import PreprocessConfig
from featd.net.net import caffe_defaults
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from featd.preprocess.variants import variants

CROP = (48, 40)


def spec_of(**keys: Any) -> PreprocessSpec:
    """A spec of a Caffe net; `mean image` is the size of one."""
    shape = (1 if keys.get("channels") == "gray" else 3, *CROP)
    image = keys.pop("mean image", None)
    spec = resolve(PreprocessConfig(**keys), shape, caffe_defaults(shape))
    if image is None:
        return spec
    mean = np.random.default_rng(3).uniform(90, 130, (shape[0], *image)).astype(np.float32)
    return replace(spec, mean=mean)


def applied(spec: PreprocessSpec) -> np.ndarray:
    out = np.full(spec.shape, np.nan, np.float32)
    apply(golden_pictures()[4], spec, out)
    return out


@pytest.mark.parametrize("preset", ["fast", "pycaffe"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"channels": "rgb", "scale": 0.017},
        {"channels": "gray"},
        {"resize": "short_side", "size": (70, 70)},
        {"mean image": (256, 256), "size": (256, 256)},
        {"mean image": CROP},
        {"crops": "ten"},
        {"crops": "ten", "mean image": CROP},
    ],
    ids=str,
)
def test_each_is_another_preprocessing_of_the_same_net(preset: str, keys: dict[str, Any]) -> None:
    spec = spec_of(preset=preset, **keys)
    found = variants(spec)
    assert len({name for name, _ in found}) == len(found) > 8
    identities = {
        json.dumps(one.identity(), sort_keys=True) for one in [spec, *(other for _, other in found)]
    }
    assert len(identities) == len(found) + 1
    for name, variant in found:
        assert (variant.crop, variant.depth) == (spec.crop, spec.depth), name
        assert np.isfinite(applied(variant)).all(), name
        if variant.crops == "ten":
            assert variant.size != variant.crop, name


@pytest.mark.parametrize(
    ("held", "mistaken", "name"),
    [
        ({"channels": "rgb"}, {}, 'channels = "rgb"'),
        ({"channels": "rgb", "mean": (104, 117, 123)}, {}, 'channels = "rgb" with the mean in the order bgr'),
        ({"mean": (123, 117, 104)}, {}, "a mean in the order rgb"),
        ({"mean": (0,)}, {}, "no mean"),
        ({"scale": 1 / 255}, {}, "scale 1/255"),
        ({"scale": 1 / 255, "mean": (0,)}, {"mean": (0,)}, "scale 1/255"),
        ({"size": CROP}, {}, f"size = {list(CROP)}"),
        ({"resize": "short_side"}, {}, 'resize = "short_side"'),
        ({"interpolation": "area"}, {}, 'interpolation = "area"'),
        ({"preset": "pycaffe"}, {}, 'preset "pycaffe" with its own mean'),
        ({"preset": "pycaffe", "mean": (104, 117, 123)}, {}, 'preset "pycaffe"'),
        ({"preset": "pycaffe", "size": (256, 256)}, {"preset": "pycaffe"}, 'preset "pycaffe" with size = [256, 256]'),
        ({}, {"preset": "pycaffe", "mean": (104, 117, 123)}, 'preset "fast" or "caffe-transform"'),
    ],
)  # fmt: skip
def test_a_mistake_is_found_by_its_name(held: dict[str, Any], mistaken: dict[str, Any], name: str) -> None:
    wanted = applied(spec_of(**held))
    same = [
        found for found, variant in variants(spec_of(**mistaken)) if np.array_equal(applied(variant), wanted)
    ]
    assert same == [name]
