"""Preset pycaffe against caffe.Classifier itself: a net that gives back its input shows what pycaffe feeds it.

The installed caffe.io lacks two names, which are given to it here: `resize`, without the smoothing that
scikit-image had not yet when it was written, and `load_image`'s `as_grey`, restated.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage
from skimage.color import rgb2gray
from skimage.transform import resize

from featd.config import PreprocessConfig
from featd.errors import ConfigError
from featd.net.net import caffe_defaults
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.presets import ILSVRC_MEAN_BGR
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from featd.preprocess.variants import variants
from nets import input_layer, layer, random_weights, real_caffe

SIZE = 56
CLOSE = 2e-3  # of 255: pycaffe's own rounding, of floats stretched to 0..1 and back


@pytest.fixture
def caffe(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = real_caffe()
    monkeypatch.setattr(module.io, "resize", partial(resize, anti_aliasing=False), raising=False)
    return module


def mirror_net(folder: Path, depth: int = 3, size: int = SIZE) -> tuple[str, str]:
    text = input_layer(depth, size, size) + layer("same", "Power", "data")
    definition, weights = folder / "net.prototxt", folder / "net.caffemodel"
    definition.write_text(text)
    random_weights(text, weights)
    return str(definition), str(weights)


def load_image(pixels: np.ndarray, color: bool = True) -> np.ndarray:
    """caffe.io.load_image from the decoded picture on (python/caffe/io.py): RGB or grey, floats, 0..1."""
    rgb = pixels[:, :, ::-1]
    image = skimage.img_as_float(rgb if color else rgb2gray(rgb)).astype(np.float32)
    return image if color else image[:, :, None]


def ours(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    out = np.full(spec.shape, np.nan, np.float32)
    apply(pixels, spec, out)
    return out


def mean_file(folder: Path, depth: int, *size: int) -> Path:
    path = folder / "mean.npy"
    np.save(path, np.random.default_rng(8).uniform(90, 130, (depth, *size)))
    return path


@pytest.mark.parametrize("channels", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("mean", ["none", "values", "image", "input image"])
@pytest.mark.parametrize("image_dims", [None, (64, 71)])
@pytest.mark.parametrize("shape", [(90, 120), (40, 130), (30, 20), (600, 500), (SIZE, SIZE)])
def test_the_classifiers_input(
    caffe: Any,
    tmp_path: Path,
    channels: str,
    mean: str,
    image_dims: tuple[int, int] | None,
    shape: tuple[int, int],
) -> None:
    depth = 1 if channels == "gray" else 3
    pixels = cv2.resize(golden_pictures()[4], shape[::-1])
    keys: dict[str, Any] = {"channels": channels, "scale": 0.017}
    if image_dims is not None:
        keys["size"] = image_dims
    match mean:
        case "none":
            keys["mean"] = (0.0,)
        case "values":
            keys["mean"] = (101.5, 117.25, 123.0)[:depth]
        case "image":
            keys["mean"] = mean_file(tmp_path, depth, 64, 71)
        case "input image":
            keys["mean"] = mean_file(tmp_path, depth, SIZE, SIZE)
    values = np.load(keys["mean"]) if isinstance(keys["mean"], Path) else np.array(keys["mean"])
    classifier = caffe.Classifier(
        *mirror_net(tmp_path, depth),
        image_dims=image_dims,
        mean=None if mean == "none" else values,
        input_scale=0.017,
        raw_scale=255,
        channel_swap=(2, 1, 0) if channels == "bgr" else None,
    )
    theirs = classifier.predict([load_image(pixels, color=channels != "gray")], oversample=False)[0]
    spec = resolve(
        PreprocessConfig(preset="pycaffe", **keys), (depth, SIZE, SIZE), caffe_defaults((depth, SIZE, SIZE))
    )
    assert np.abs(ours(pixels, spec) - theirs).max() < CLOSE * 0.017


def test_the_notebooks_transformer(caffe: Any, tmp_path: Path) -> None:
    """Notebook 00-classification's lines, and the preset with nothing beside it."""
    shape = (3, 227, 227)
    transformer = caffe.io.Transformer({"data": (10, *shape)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", np.array(ILSVRC_MEAN_BGR))
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    spec = resolve(PreprocessConfig(preset="pycaffe"), shape, caffe_defaults(shape))
    fast = resolve(PreprocessConfig(), shape, caffe_defaults(shape))
    for pixels in golden_pictures():
        theirs = transformer.preprocess("data", load_image(pixels))
        assert np.abs(ours(pixels, spec) - theirs).max() < CLOSE
        assert np.abs(ours(pixels, fast) - theirs).max() > 1  # or this would be no test of a preset
    # Where nothing is resized, Transformer runs as it is installed.
    fits = golden_pictures()[5][:227, :227]
    theirs = transformer.preprocess("data", load_image(fits))
    assert np.abs(ours(fits, spec) - theirs).max() < CLOSE


def test_what_the_preset_stands_for() -> None:
    shape = (3, 227, 227)
    defaults = caffe_defaults(shape)
    spec = resolve(PreprocessConfig(preset="pycaffe"), shape, defaults)
    assert (spec.size, spec.mean, spec.orientation) == ((227, 227), ILSVRC_MEAN_BGR, "ignore")
    keys = {"orientation": "ignore", "arithmetic": "skimage", "size": (227, 227), "mean": ILSVRC_MEAN_BGR}
    assert resolve(PreprocessConfig(**keys), shape, defaults).identity() == spec.identity()
    back = {"orientation": "apply", "arithmetic": "opencv", "size": (256, 256), "mean": (104.0, 117.0, 123.0)}
    fast = resolve(PreprocessConfig(), shape, defaults)
    assert resolve(PreprocessConfig(preset="pycaffe", **back), shape, defaults).identity() == fast.identity()
    rgb = resolve(PreprocessConfig(preset="pycaffe", channels="rgb"), shape, defaults)
    assert rgb.mean == ILSVRC_MEAN_BGR[::-1]
    gray = [
        resolve(PreprocessConfig(preset=name), (1, 28, 28), caffe_defaults((1, 28, 28))).decode_gray
        for name in ("fast", "caffe-transform", "pycaffe")
    ]
    assert gray == [True, True, False]  # pycaffe's grey is made of the colours, with its own weights
    with pytest.raises(ConfigError, match=r"preprocess\.interpolation.*arithmetic = \"opencv\""):
        resolve(PreprocessConfig(preset="pycaffe", interpolation="area"), shape, defaults)


def test_a_preset_is_among_the_others_variants() -> None:
    """What a golden mismatch is explained with."""
    shape = (3, 227, 227)
    specs = {
        name: resolve(PreprocessConfig(preset=name), shape, caffe_defaults(shape))
        for name in ("fast", "pycaffe")
    }
    pixels = golden_pictures()[4]
    found = {name: ours(pixels, spec) for name, spec in variants(specs["fast"]) if spec.crops == "center"}
    assert np.array_equal(found['preset "pycaffe" with its own mean'], ours(pixels, specs["pycaffe"]))
