"""Pixels to input: Caffe's order of steps, the hashed spec, and means from files."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd.config import PreprocessConfig
from featd.errors import ConfigError
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.presets import PRESETS
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec

SHARED_MEAN = Path(__file__).parents[3] / "shared" / "data" / "ilsvrc_2012_mean.npy"


@dataclass(frozen=True)
class Defaults:
    size: tuple[int, int] = (256, 256)
    channels: str = "bgr"
    mean: tuple[float, ...] = (104.0, 117.0, 123.0)
    scale: float = 1.0
    std: tuple[float, ...] = ()


SPEC = PreprocessSpec(
    "apply", "warp", (256, 256), "linear", "bgr", (104.0, 117.0, 123.0), 1.0, (227, 227), 10**8
)


def applied(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    out = np.full(spec.shape, np.nan, np.float32)
    apply(pixels, spec, out)
    return out


def by_hand(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """The same in plain steps, as Caffe's data transformer has them."""
    height, width = spec.size
    if spec.resize == "short_side":
        factor = max(height / pixels.shape[0], width / pixels.shape[1])
        height = max(height, int(pixels.shape[0] * factor + 0.5))
        width = max(width, int(pixels.shape[1] * factor + 0.5))
    big = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if spec.channels == "rgb":
        big = big[:, :, ::-1]
    if spec.channels == "gray":
        big = big.reshape(height, width, 1)
    top, left = (height - spec.crop[0]) // 2, (width - spec.crop[1]) // 2
    crop = big[top : top + spec.crop[0], left : left + spec.crop[1]].astype(np.float32).transpose(2, 0, 1)
    mean = spec.mean if isinstance(spec.mean, np.ndarray) else np.array(spec.mean, np.float32)[:, None, None]
    if mean.shape[1:] != (1, 1):
        top, left = (mean.shape[1] - spec.crop[0]) // 2, (mean.shape[2] - spec.crop[1]) // 2
        mean = mean[:, top : top + spec.crop[0], left : left + spec.crop[1]]
    return (crop - mean) * np.float32(spec.scale)


@pytest.mark.parametrize("resize", ["warp", "short_side"])
@pytest.mark.parametrize("channels", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("mean", ["values", "image", "crop image"])
@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (31, 400), (256, 256)])
def test_the_steps_are_caffes(resize: str, channels: str, mean: str, shape: tuple[int, int]) -> None:
    depth = 1 if channels == "gray" else 3
    values: tuple[float, ...] | np.ndarray = (104.0, 117.0, 123.0)[:depth]
    if mean != "values":
        size = (256, 256) if mean == "image" else (227, 225)
        values = np.random.default_rng(1).uniform(0, 255, (depth, *size)).astype(np.float32)
    spec = dataclasses.replace(
        SPEC, resize=resize, channels=channels, mean=values, crop=(227, 225), scale=0.017
    )
    pixels = cv2.resize(golden_pictures()[4], shape[::-1])
    if channels == "gray":
        assert np.array_equal(applied(pixels, spec), applied(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), spec))
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    out = applied(pixels, spec)
    assert (out.dtype, out.shape) == (np.float32, (depth, 227, 225))
    assert np.array_equal(out, by_hand(pixels, spec))


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 64), st.integers(1, 64))
def test_short_side_always_covers_the_size(
    height: int, width: int, wanted_height: int, wanted_width: int
) -> None:
    from featd.preprocess.apply import resized_to

    spec = dataclasses.replace(SPEC, resize="short_side", size=(wanted_height, wanted_width))
    got_height, got_width = resized_to(height, width, spec)
    assert got_height >= wanted_height
    assert got_width >= wanted_width
    assert got_height == wanted_height or got_width == wanted_width
    # proportions are kept to the rounding of one side
    assert abs(got_height * width - got_width * height) <= max(height, width)


def test_defaults_are_the_nets() -> None:
    spec = resolve(PreprocessConfig(), (3, 227, 227), Defaults())
    assert (spec.size, spec.crop, spec.channels, spec.mean, spec.scale) == (
        (256, 256),
        (227, 227),
        "bgr",
        (104.0, 117.0, 123.0),
        1.0,
    )
    assert spec.identity() == SPEC.identity()
    assert resolve(PreprocessConfig(), (3, 299, 299), Defaults()).size == (299, 299)
    assert resolve(PreprocessConfig(channels="rgb"), (3, 227, 227), Defaults()).mean == (123.0, 117.0, 104.0)
    assert resolve(PreprocessConfig(mean=(5.0,)), (3, 227, 227), Defaults()).mean == (5.0, 5.0, 5.0)
    gray = resolve(PreprocessConfig(), (1, 64, 64), Defaults((64, 64), "gray", (), 0.5))
    assert (gray.mean, gray.scale, gray.shape) == ((0.0,), 0.5, (1, 64, 64))
    assert resolve(PreprocessConfig(size=(300, 260)), (3, 227, 227), Defaults()).size == (
        300,
        260,
    )  # height, width


def test_every_preset_has_its_name_in_the_configuration() -> None:
    assert set(get_args(PreprocessConfig.model_fields["preset"].annotation)) == set(PRESETS)


@pytest.mark.parametrize(
    ("config", "shape", "said"),
    [
        ({"size": (226, 256)}, (3, 227, 227), "preprocess.size"),
        ({"channels": "gray"}, (3, 227, 227), "preprocess.channels"),
        ({}, (1, 28, 28), "preprocess.channels"),
        ({}, (4, 28, 28), "preprocess.channels"),
        ({"mean": (1.0, 2.0)}, (3, 227, 227), "preprocess.mean"),
        ({"channels": "gray"}, (1, 28, 28), "preprocess.mean"),
        ({"mean": Path("/nowhere/mean.npy")}, (3, 227, 227), "preprocess.mean"),
    ],
)
def test_what_does_not_fit_names_its_key(
    config: dict[str, object], shape: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(PreprocessConfig(**config), shape, Defaults())


def test_identity_is_json_and_tells_what_counts() -> None:
    variants = {
        "orientation": "ignore",
        "resize": "short_side",
        "size": (255, 256),
        "interpolation": "area",
        "channels": "rgb",
        "mean": (104.0, 117.0, 124.0),
        "scale": 0.5,
        "crop": (224, 227),
        "arithmetic": "skimage",
        "crops": "ten",
        "reduce_jpeg": True,
    }
    seen = {json.dumps(SPEC.identity(), sort_keys=True)}
    for key, value in variants.items():
        seen.add(json.dumps(dataclasses.replace(SPEC, **{key: value}).identity(), sort_keys=True))
    image = np.zeros((3, 256, 256), np.float32)
    for at in range(2):
        image[0, 0, 0] = at
        seen.add(json.dumps(dataclasses.replace(SPEC, mean=image.copy()).identity(), sort_keys=True))
    assert len(seen) == 1 + len(variants) + 2
    assert dataclasses.replace(SPEC, max_pixels=5).identity() == SPEC.identity()


def test_the_identity_of_what_a_silent_configuration_means_is_the_same_for_ever() -> None:
    """Another one would lock every catalog there is: a key that comes later may count only where it is used."""
    assert json.dumps(SPEC.identity(), sort_keys=True) == (
        '{"channels": "bgr", "crop": [227, 227], "interpolation": "linear", "mean": [104.0, 117.0, 123.0], '
        '"orientation": "apply", "resize": "warp", "scale": 1.0, "size": [256, 256]}'
    )


def test_a_spec_travels() -> None:
    image = np.random.default_rng(2).uniform(0, 255, (3, 256, 256)).astype(np.float32)
    other = dataclasses.replace(SPEC, arithmetic="skimage", crops="ten")
    for spec in (SPEC, dataclasses.replace(SPEC, mean=image), other):
        again = PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again.identity() == spec.identity()
        assert (again.max_pixels, again.shape) == (spec.max_pixels, spec.shape)
        assert np.array_equal(again.mean, spec.mean)
        assert np.array_equal(applied(golden_pictures()[0], again), applied(golden_pictures()[0], spec))


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def blob_proto(values: np.ndarray, style: str) -> bytes:
    """Caffe's BlobProto in the forms its versions wrote."""
    legacy = b"".join(
        varint(field << 3) + varint(size)
        for field, size in zip((1, 2, 3, 4), (1, *values.shape), strict=True)
    )
    flat = values.astype("<f4").ravel()
    if style == "unpacked":
        return legacy + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in flat)
    if style == "double":
        body = values.astype("<f8").tobytes()
        return legacy + varint(8 << 3 | 2) + varint(len(body)) + body
    body = varint(5 << 3 | 2) + varint(flat.nbytes) + flat.tobytes()
    if style == "shape":
        dims = b"".join(varint(size) for size in values.shape)
        shape = varint(1 << 3 | 2) + varint(len(dims)) + dims
        return varint(7 << 3 | 2) + varint(len(shape)) + shape + body
    return legacy + body


@pytest.mark.parametrize("style", ["packed", "unpacked", "double", "shape"])
def test_binaryproto(tmp_path: Path, style: str) -> None:
    values = np.random.default_rng(3).uniform(0, 255, (3, 40, 30)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(blob_proto(values, style))
    spec = resolve(PreprocessConfig(mean=path, size=(40, 30)), (3, 28, 28), Defaults())
    assert np.array_equal(spec.mean, values)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((3, 256, 256), True), ((1, 3, 256, 256), True), ((3, 227, 227), True), ((3,), True), ((3, 1, 1), True)]
    + [(shape, False) for shape in [(256, 256), (1, 256, 256), (3, 256, 255), (2, 3, 256, 256), (0,), ()]],
)
def test_npy_means(tmp_path: Path, shape: tuple[int, ...], fits: bool) -> None:
    path = tmp_path / "mean.npy"
    np.save(path, np.full(shape, 9.0))
    config = PreprocessConfig(mean=path)
    if fits:
        out = applied(golden_pictures()[0], resolve(config, (3, 227, 227), Defaults()))
        assert np.array_equal(
            out, applied(golden_pictures()[0], dataclasses.replace(SPEC, mean=(9.0, 9.0, 9.0)))
        )
    else:
        with pytest.raises(ConfigError, match=r"preprocess\.mean"):
            resolve(config, (3, 227, 227), Defaults())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 100, b"\xff" * 40, b"\x2a\xff\xff\xff\x7f"])
@pytest.mark.parametrize("suffix", [".npy", ".binaryproto"])
def test_broken_means_are_config_errors(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"mean{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"preprocess\.mean"):
        resolve(PreprocessConfig(mean=path), (3, 227, 227), Defaults())


@pytest.mark.parametrize("shape", ["(3, 1000000, 1000000)", "(" * 4000, "(3, -2, -2)"])
def test_a_mean_that_promises_what_it_does_not_hold(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "mean.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(ConfigError, match=r"mean\.npy: not a usable mean"):
        resolve(PreprocessConfig(mean=path), (3, 227, 227), Defaults())


@pytest.mark.parametrize("suffix", [".npy", ".binaryproto"])
def test_a_mean_is_a_regular_file(tmp_path: Path, suffix: str) -> None:
    """A FIFO would be waited for, a device be read without end."""
    path = tmp_path / f"mean{suffix}"
    os.mkfifo(path)
    for name in (path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a regular file"):
            resolve(PreprocessConfig(mean=name), (3, 227, 227), Defaults())


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mean.npy"
    np.save(path, np.array([object()], object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"not a complete \.npy file of numbers"):
        resolve(PreprocessConfig(mean=path), (3, 227, 227), Defaults())
    np.save(path, np.array([np.nan, 0, 0]))
    with pytest.raises(ConfigError, match="finite"):
        resolve(PreprocessConfig(mean=path), (3, 227, 227), Defaults())


@pytest.mark.skipif(not SHARED_MEAN.exists(), reason="no shared folder here")
def test_caffes_own_mean_image() -> None:
    spec = resolve(PreprocessConfig(mean=SHARED_MEAN), (3, 227, 227), Defaults())
    assert spec.mean.shape == (3, 256, 256)
    assert applied(golden_pictures()[2], spec).shape == (3, 227, 227)


def test_golden_pictures_are_the_same_for_ever() -> None:
    import hashlib

    pictures = golden_pictures()
    assert len(pictures) >= 8
    for picture in pictures:
        assert (picture.dtype, picture.shape) == (np.uint8, (240, 320, 3))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()
    assert digest == "ba17a1ee0c5b4f5c3d37b4500e64d1c6e37cfffad8f7937bc3a87256af27a941"
