"""pycaffe's resize: scikit-image's own, called as caffe.io.resize_image does, is what ours is held to."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import resize

from featd.preprocess.float_resize import resize_float, resize_mean


def by_skimage(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`caffe.io.resize_image` (python/caffe/io.py), in double precision. skimage smoothed nothing in its time."""
    least, most = float(pixels.min()), float(pixels.max())
    if least == most:
        return np.full((height, width, *pixels.shape[2:]), least)
    stretched = (pixels - least) / (most - least)
    out = resize(stretched, (height, width), order=1, mode="constant", anti_aliasing=False)
    return out * (most - least) + least


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([(), (1,), (3,)]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_picture_to_any_size(
    rows: int, columns: int, height: int, width: int, depth: tuple[int, ...], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(40, 256, (rows, columns, *depth), dtype=np.uint8)
    ours = resize_float(pixels, height, width)
    assert (ours.dtype, ours.shape) == (np.float32, (height, width, *depth))
    assert np.abs(ours - by_skimage(pixels, height, width)).max() < 1e-3


@pytest.mark.parametrize(
    ("source", "target"),
    [((375, 500), (227, 227)), ((1200, 1600), (227, 227)), ((90, 4000), (227, 227)), ((31, 37), (256, 200))],
)
def test_sizes_of_photographs(source: tuple[int, int], target: tuple[int, int]) -> None:
    """Far from zero a coordinate in single precision is off by enough to show; both ways of ours must not be."""
    pixels = np.random.default_rng(5).integers(0, 256, (*source, 3), dtype=np.uint8)
    assert np.abs(resize_float(pixels, *target) - by_skimage(pixels, *target)).max() < 1e-3


def test_an_enlarged_edge_mixes_with_the_least_value_of_all_channels() -> None:
    pixels = np.full((2, 2, 3), 200, np.uint8)
    pixels[1, 1, 2] = 40
    out = resize_float(pixels, 4, 4)
    assert out[0, 0].tolist() == pytest.approx([40 + 160 * 0.75 * 0.75] * 3)


def test_a_picture_of_one_colour_stays_so() -> None:
    assert (resize_float(np.full((3, 5, 3), 77, np.uint8), 8, 9) == 77).all()


@pytest.mark.parametrize("target", [(227, 227), (256, 256), (300, 280)])
def test_means(target: tuple[int, int]) -> None:
    mean = np.random.default_rng(6).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    theirs = by_skimage(mean.transpose(1, 2, 0).astype(np.float64), *target).transpose(2, 0, 1)
    assert np.abs(resize_mean(mean, *target) - theirs).max() < 1e-5


def test_a_resized_mean_is_the_same_everywhere_for_ever() -> None:
    """Its bytes are in fingerprints."""
    mean = (np.arange(3 * 40 * 30).reshape(3, 40, 30) * 7919 % 1024).astype(np.float32) / 8
    digest = hashlib.sha256(resize_mean(mean, 27, 33).tobytes()).hexdigest()
    assert digest == "03dd34b44b6a48d07bd2a38d17c48a7d1afad699b0a9ffeec1386f408ef42aff"
