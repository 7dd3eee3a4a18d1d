"""The presets imagenet, clip and dino against their authors' definitions, as torchvision writes them with Pillow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featd import config
from featd.config import PreprocessConfig
from featd.engines.ten_crop import TenCropEngine
from featd.errors import ConfigError
from featd.net.net import caffe_defaults
from featd.net.onnx_file.net import onnx_defaults
from featd.preprocess.apply import apply
from featd.preprocess.resolve import input_size, resolve
from featd.preprocess.spec import PreprocessSpec
from photographs import originals

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
AUTHORS = {
    "imagenet": (256, Image.Resampling.BILINEAR, *IMAGENET),
    "clip": (224, Image.Resampling.BICUBIC, *CLIP),
    "dino": (256, Image.Resampling.BICUBIC, *IMAGENET),
}
"""Preset -> (resize, interpolation, mean, std); all crop 224."""


def by_torchvision(
    picture: Image.Image,
    resize: int,
    how: Image.Resampling,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop: int = 224,
) -> np.ndarray:
    """Resize(resize, how), CenterCrop(crop), ToTensor(), Normalize(mean, std) of torchvision, for a picture of RGB."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != resize:
        new = int(resize * long / short)
        picture = picture.resize((resize, new) if width <= height else (new, resize), how)
    width, height = picture.size
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    picture = picture.crop((left, top, left + crop, top + crop))
    tensor = np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (tensor - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]


def spec_of(net: tuple[int, int, int] = (3, 224, 224), **keys: object) -> PreprocessSpec:
    return resolve(PreprocessConfig.model_validate(keys), net, onnx_defaults(net))


def applied(bgr: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    out = np.full(spec.shape, np.nan, np.float32)
    apply(bgr, spec, out)
    return out


@pytest.mark.parametrize("preset", AUTHORS)
def test_a_preset_prepares_photographs_as_its_authors_do(preset: str) -> None:
    for bgr in originals().values():
        theirs = by_torchvision(Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])), *AUTHORS[preset])
        np.testing.assert_allclose(applied(bgr, spec_of(preset=preset)), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("preset", AUTHORS)
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
def test_so_it_does_for_pictures_of_any_size(preset: str, height: int, width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if max(height, width) > 40 * min(height, width):
        width = height
        rgb = rgb[:, :1].repeat(width, axis=1)
    theirs = by_torchvision(Image.fromarray(rgb), *AUTHORS[preset])
    mine = applied(np.ascontiguousarray(rgb[:, :, ::-1]), spec_of(preset=preset))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)


def test_a_preset_gives_values_that_keys_override() -> None:
    spec = spec_of(preset="imagenet", channels="bgr", size=300)
    assert spec.channels == "bgr"
    assert (spec.mean, spec.std) == ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
    assert (spec.size, spec.orientation) == ((300, 300), "ignore")
    mean = spec_of(preset="clip", mean=[1, 2, 3], std=50, scale=2.0)
    assert (mean.mean, mean.std, mean.scale) == ((1.0, 2.0, 3.0), (50.0, 50.0, 50.0), 2.0)
    # Also for a net of Caffe, whose own values do not count then.
    caffe = resolve(PreprocessConfig(preset="imagenet"), (3, 224, 224), caffe_defaults((3, 224, 224)))
    assert caffe.to_json() == spec_of(preset="imagenet").to_json()
    # And Caffe's presets for an ONNX file that was made of a net of Caffe.
    assert spec_of(preset="caffe-transform").mean == (104.0, 117.0, 123.0)
    assert spec_of().scale == 1 / 255


def test_std_is_divided_by_after_mean_and_scale() -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    spec = spec_of((3, 20, 20), channels="bgr", mean=[1, 2, 3], scale=0.5, std=[2, 4, 8])
    by_hand = (
        (bgr.transpose(2, 0, 1) - np.array([1, 2, 3])[:, None, None])
        * 0.5
        / np.array([2, 4, 8])[:, None, None]
    )
    np.testing.assert_allclose(applied(bgr, spec), by_hand, rtol=1e-6)
    assert PreprocessSpec.from_json(spec.to_json()).std == (2.0, 4.0, 8.0)


def test_ten_crops_with_a_mean_image_divide_by_std_too() -> None:
    class Inner:
        name, device, input_shape, blobs, parallel = "inner", "cpu", (3, 4, 4), {"x": 48}, 1

        def forward(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            return {"x": batch.reshape(len(batch), -1).copy()}

        def close(self) -> None:
            pass

    spec = spec_of((3, 4, 4), size=8, crops="ten", scale=0.5, std=[2, 4, 8], mean=0.0)
    mean = np.full((3, 4, 4), 7, np.float32)
    engine = TenCropEngine(Inner(), spec.size, mean, spec.factors)
    batch = np.full((1, 3, 8, 8), 9, np.float32)
    expected = np.repeat([2 * 0.5 / 2, 2 * 0.5 / 4, 2 * 0.5 / 8], 16)
    np.testing.assert_array_equal(engine.forward(batch)["x"][0], expected.astype(np.float32))


def test_std_is_in_the_fingerprint_only_where_it_is_set() -> None:
    plain = spec_of(channels="bgr")
    assert "std" not in plain.identity()
    assert spec_of(channels="bgr", std=1.0).identity() == plain.identity()
    assert spec_of(channels="bgr", std=2.0).identity()["std"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            "std = [0.229, 0.224, 0.225]\nmean = [0.485, 0.456, 0.406]",
            "write 255 times both, mean = [123.675, ",
        ),
        ("std = 0", "preprocess.std"),
        ("std = [1.0, -2.0, 1.0]", "preprocess.std"),
        ("std = inf", "preprocess.std"),
    ],
)
def test_a_std_that_cannot_be_meant_is_refused(tmp_path: Path, keys: str, told: str) -> None:
    (tmp_path / "featd.toml").write_text(f"[preprocess]\n{keys}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "featd.toml")
    assert told in str(caught.value)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.std: 2 values for 3 channel"):
        spec_of(std=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"preprocess\.preset: 'clip' is for colours"):
        spec_of((1, 224, 224), preset="clip")
    with pytest.raises(ConfigError, match=r"preprocess\.arithmetic: Pillow resizes 'rgba'"):
        spec_of((4, 224, 224), arithmetic="pillow")


def test_the_input_of_a_net_that_takes_any_size() -> None:
    def size(**keys: object) -> tuple[int, int]:
        return input_size(PreprocessConfig.model_validate(keys), None)

    assert size(preset="imagenet") == size(preset="clip") == size(preset="dino") == (224, 224)
    assert size(preset="imagenet", size=300) == (224, 224)
    assert size(preset="imagenet", size=160) == (160, 160)
    assert size(preset="clip", size=336) == (336, 336)
    assert size(preset="dino", crop=[518, 518]) == (518, 518)
    assert size(size=[200, 300]) == (200, 300)
    with pytest.raises(ConfigError, match=r"preprocess\.size: the net takes pictures of any size"):
        size()


def test_resizing_is_with_antialiasing() -> None:
    """A fine pattern becomes grey; without antialiasing it stays a pattern."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    spec = spec_of((3, 100, 100), arithmetic="pillow", interpolation="cubic", scale=1.0, mean=0.0)
    values = applied(stripes, spec)[:, 5:-5, 5:-5]
    assert math.isclose(values.mean(), 127.5, abs_tol=1.5)
    assert values.std() < 2
