"""The built-in net: the same anywhere, in both engines, and good enough to find a picture again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage

from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.net import gist
from nets import SHARED, TOLERANCE, both_engines, distance, load, pictures, real_caffe, write_weights

Image = npt.NDArray[np.uint8]

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
    "text.png",
)  # fmt: skip


def photos() -> list[Image]:
    """Different pictures: what scikit-image's wheel ships, and two of the reference data where they are."""
    paths = [Path(skimage.__file__).parent / "data" / name for name in PHOTOS]
    paths += [path for path in (SHARED / "cat.jpg", SHARED / "fish-bike.jpg") if path.exists()]
    assert all(path.exists() for path in paths)
    return [decoded(path.read_bytes()) for path in paths]


def decoded(data: bytes) -> Image:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def batch(images: list[Image]) -> npt.NDArray[np.float32]:
    size = gist.PREPROCESS.size
    small = [cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) for image in images]
    mean = np.array(gist.PREPROCESS.mean, np.float32)
    return np.stack([(image.astype(np.float32) - mean).transpose(2, 0, 1) for image in small])


def cropped(area: float, y: float, x: float) -> Callable[[Image], Image]:
    """Keep `area` of the picture; 0, 0 is the top left corner, 1, 1 the bottom right."""

    def crop(image: Image) -> Image:
        height, width = (int(side * area**0.5) for side in image.shape[:2])
        top, left = int((image.shape[0] - height) * y), int((image.shape[1] - width) * x)
        return image[top : top + height, left : left + width]

    return crop


def recoded(quality: int, scale: float = 1.0) -> Callable[[Image], Image]:
    def recode(image: Image) -> Image:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return decoded(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())

    return recode


CHANGES: dict[str, Callable[[Image], Image]] = {
    **{f"crop {a} at {y} {x}": cropped(a, y, x) for a in (0.8, 0.9) for y in (0, 1) for x in (0, 1)},
    **{f"JPEG {quality}": recoded(quality) for quality in (30, 60, 90)},
    **{f"{scale} of the size": recoded(75, scale) for scale in (0.4, 0.7)},
    "crop and JPEG": lambda image: recoded(40)(cropped(0.85, 1, 0.2)(image)),
    "darker": lambda image: (image * 0.6).astype(np.uint8),
}


@pytest.fixture(scope="module")
def engine() -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(load(ModelConfig()), "cpu", 2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_nearest_to_its_original(engine: OnnxRuntimeEngine, change: str) -> None:
    images = photos()
    originals = engine.forward(batch(images))["gist"]
    changed = engine.forward(batch([CHANGES[change](image) for image in images]))["gist"]
    gaps = np.linalg.norm(changed[:, None] - originals[None], axis=2)
    own = gaps.diagonal()
    others = np.where(np.eye(len(images), dtype=bool), np.inf, gaps).min(axis=1)
    # Not only nearest: by a margin. 0.77 was the worst when this was written.
    assert (own < 0.9 * others).all()


def test_both_engines_agree(engine: OnnxRuntimeEngine) -> None:
    net = load(ModelConfig(blobs=("energy0", "level3", "cells3", "envelope", "gist")))
    noise, flat = pictures(net, 3), np.full((2, *net.input_shape), 7, np.float32)
    for images in (noise, batch(photos()[:4]), flat):
        reference, lowered = (each.forward(images) for each in both_engines(net))
        assert max(distance(lowered[blob], reference[blob]) for blob in net.blobs) < TOLERANCE


def test_it_is_a_caffe_net(tmp_path: Path, engine: OnnxRuntimeEngine) -> None:
    """Written to files, plain pycaffe runs it."""
    caffe = real_caffe()
    (tmp_path / "gist.prototxt").write_text(gist.prototxt())
    write_weights(tmp_path / "gist.caffemodel", "gist", gist.weights())
    net = caffe.Net(str(tmp_path / "gist.prototxt"), caffe.TEST, weights=str(tmp_path / "gist.caffemodel"))
    images = batch(photos()[:1])
    net.blobs["data"].data[...] = images
    net.forward()
    assert distance(engine.forward(images)["gist"], net.blobs["gist"].data.reshape(1, -1)) < TOLERANCE


def test_vectors_have_length_one_and_do_not_see_brightness(engine: OnnxRuntimeEngine) -> None:
    images = batch(photos())
    vectors = engine.forward(images)["gist"]
    assert vectors.shape == (len(images), 544)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    brighter = engine.forward(images + 20)["gist"]
    assert np.abs(brighter - vectors).max() < 1e-4
    blank = engine.forward(np.zeros((1, 3, 128, 128), np.float32))["gist"]
    assert np.isfinite(blank).all()


def test_recipe_is_fixed() -> None:
    """The vectors of every catalog made with gist hang on these bytes: whoever changes them raises REVISION."""
    digest = hashlib.sha256(gist.prototxt().encode())
    for name, arrays in gist.weights().items():
        digest.update(name.encode())
        for array in arrays:
            assert array.dtype == np.float32
            digest.update(array.astype("<f4").tobytes())
    assert (gist.REVISION, digest.hexdigest()[:16]) == (1, "270065dbfdf8059a")


def test_filters_sum_to_zero() -> None:
    bank = gist.gabor_bank().astype(np.float64)
    assert np.abs(bank.sum(axis=(1, 2, 3))).max() < 1e-4
    # Rounded so coarsely that the last bit of a platform's exp and cos cannot show.
    np.testing.assert_array_equal(bank * 2**20, np.round(bank * 2**20))


def test_identity() -> None:
    net = load(ModelConfig())
    assert (net.name, net.source, net.blobs) == ("gist", "gist", {"gist": 544})
    assert net.identity == {"net": "gist/1"}
    assert net.input_shape == (3, 128, 128)


def test_a_hundred_pictures_a_second_on_one_core() -> None:
    net = load(ModelConfig())
    single = OnnxRuntimeEngine(net, "cpu", 1)
    images: Any = pictures(net, 32)
    single.forward(images)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        single.forward(images)
        best = max(best, len(images) / (time.perf_counter() - start))
    assert best > 100
