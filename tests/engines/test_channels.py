"""Nets whose input has two or four channels: from files to vectors, as real Caffe makes them of the same arrays.

The arrays of reference are made without featd: read by Pillow, resized by OpenCV.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import nets
from featd.config import PreprocessConfig
from featd.errors import ConfigError
from featd.net.net import caffe_defaults
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.resolve import resolve
from featd.preprocess.variants import variants
from pictures import exif, photo, saved
from running import Instance, live_vectors, make_instance

HEIGHT, WIDTH = 24, 32
SIZE = (28, 40)
MEANS = {
    "bgra": [104.0, 117.0, 123.0, 128.0],
    "rgba": [123.0, 117.0, 104.0, 128.0],
    "gray_alpha": [110.0, 128.0],
}


def with_alpha() -> Image.Image:
    image = photo().copy()
    image.putalpha(photo().rotate(180).convert("L"))
    return image


def definition(depth: int) -> str:
    text = 'name: "channels"\n' + nets.input_layer(depth, HEIGHT, WIDTH)
    text += nets.layer(
        "conv", "Convolution", "data", "convolution_param { num_output: 6 kernel_size: 5 stride: 2 }"
    )
    text += nets.layer("relu", "ReLU", "conv", top="conv")
    return text + nets.layer("fc", "InnerProduct", "conv", "inner_product_param { num_output: 16 }")


def files(folder: Path) -> dict[str, Image.Image]:
    """Files in `folder`, and what is in them: RGBA, upright."""
    folder.mkdir()
    gray = with_alpha().convert("LA")
    found = {
        "a.png": with_alpha(),
        "turned.png": with_alpha().transpose(Image.Transpose.ROTATE_270),
        "b.tif": with_alpha(),
        "gray.png": gray,
        "gray.tif": gray,
        "no-alpha.bmp": photo(),
    }
    (folder / "a.png").write_bytes(saved(with_alpha(), "PNG"))
    (folder / "turned.png").write_bytes(saved(with_alpha(), "PNG", exif=exif(6)))
    (folder / "b.tif").write_bytes(saved(with_alpha(), "TIFF", compression="tiff_lzw"))
    (folder / "gray.png").write_bytes(saved(gray, "PNG"))
    (folder / "gray.tif").write_bytes(saved(gray, "TIFF"))
    (folder / "no-alpha.bmp").write_bytes(saved(photo(), "BMP"))
    return {name: image.convert("RGBA") for name, image in found.items()}


def prepared(image: Image.Image, channels: str, mean: Any, scale: float) -> np.ndarray:
    """float32 (C, HEIGHT, WIDTH), without featd."""
    red, green, blue, alpha = np.moveaxis(np.asarray(image), -1, 0)
    file = saved(
        image.convert("RGB"), "PNG"
    )  # as Caffe, OpenCV makes grey while it reads, in each format otherwise
    gray = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    planes = {
        "bgra": (blue, green, red, alpha),
        "rgba": (red, green, blue, alpha),
        "gray_alpha": (gray, alpha),
    }
    resized = [cv2.resize(plane, SIZE[::-1], interpolation=cv2.INTER_LINEAR) for plane in planes[channels]]
    top, left = (SIZE[0] - HEIGHT) // 2, (SIZE[1] - WIDTH) // 2
    cut = np.stack(resized).astype(np.float32)
    mean = np.asarray(mean, np.float32)
    if mean.ndim == 1:
        mean = mean[:, None, None]
    if mean.shape[1:] == SIZE:
        mean = mean[:, top : top + HEIGHT, left : left + WIDTH]
    return (cut[:, top : top + HEIGHT, left : left + WIDTH] - mean) * np.float32(scale)


def extracted(folder: Path, channels: str, depth: int, engine: str, mean: Any) -> Instance:
    (folder / "instance").mkdir()
    model = nets.saved(definition(depth), folder, ("fc",), seed=3)
    instance = make_instance(
        folder / "instance",
        folder / "images",
        model__engine=engine,
        model__net=model.net,
        model__weights=str(model.weights),
        model__blobs=["fc"],
        preprocess__channels=channels,
        preprocess__size=list(SIZE),
        preprocess__mean=mean,
        preprocess__scale=0.5,
        workers__devices=["cpu"],
        workers__batch=4,
    )
    drained = instance.run("run", "--drain")
    assert drained.returncode == 0, drained.stderr
    return instance


@pytest.mark.parametrize("engine", ["caffe", "onnxruntime"])
@pytest.mark.parametrize("channels", MEANS)
@pytest.mark.parametrize("mean_file", [False, True])
def test_vectors_are_those_of_caffe(tmp_path: Path, channels: str, engine: str, mean_file: bool) -> None:
    caffe = nets.real_caffe()
    depth = len(MEANS[channels])
    mean: Any = MEANS[channels]
    told = mean
    if mean_file:
        mean = np.random.default_rng(5).uniform(80, 140, (depth, *SIZE)).astype(np.float32)
        np.save(tmp_path / "mean.npy", mean)
        told = str(tmp_path / "mean.npy")
    pictures = files(tmp_path / "images")
    if channels == "gray_alpha":
        for name in ("b.tif", "no-alpha.bmp"):
            (tmp_path / "images" / name).unlink()
            del pictures[name]
    instance = extracted(tmp_path, channels, depth, engine, told)
    net = caffe.Net(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"), caffe.TEST)
    vectors = {path: vector for (_, path), vector in live_vectors(instance).items()}
    assert vectors.keys() == pictures.keys()
    for name, image in pictures.items():
        net.blobs["data"].reshape(1, depth, HEIGHT, WIDTH)
        net.blobs["data"].data[0] = prepared(image, channels, mean, 0.5)
        net.forward()
        assert nets.distance(vectors[name], np.array(net.blobs["fc"].data[0])) < nets.TOLERANCE, name
    opaque = np.dstack([np.asarray(pictures["a.png"])[..., :3], np.full((120, 160), 255, np.uint8)])
    net.blobs["data"].data[0] = prepared(Image.fromarray(opaque), channels, mean, 0.5)
    net.forward()
    assert nets.distance(vectors["a.png"], np.array(net.blobs["fc"].data[0])) > 0.01, "the alpha counts"


def test_ten_crops_of_four_channels(tmp_path: Path) -> None:
    """Through a net that gives its input back, averaged over the crops."""
    shape = (4, HEIGHT, WIDTH)
    keys = {"crops": "ten", "size": SIZE, "channels": "bgra", "mean": (1.0, 2.0, 3.0, 4.0)}
    spec = resolve(PreprocessConfig(**keys), shape, caffe_defaults(shape))
    out = np.empty(spec.shape, np.float32)
    apply(np.dstack([golden_pictures()[1], golden_pictures()[4][..., 0]]), spec, out)
    assert out.shape == (4, *SIZE)
    model = nets.saved(
        nets.input_layer(4, HEIGHT, WIDTH) + nets.layer("id", "Power", "data", top="out"), tmp_path, ("out",)
    )
    from featd.worker.model import load_model

    engine = load_model(model, PreprocessConfig(**keys), "float32", "cpu", 1).engine
    vector = engine.forward(out[None])["out"][0].reshape(shape)
    down, right = SIZE[0] - HEIGHT, SIZE[1] - WIDTH
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = [out[:, top : top + HEIGHT, left : left + WIDTH] for top, left in corners]
    expected = np.mean([one for crop in crops for one in (crop, crop[..., ::-1])], axis=0)
    assert np.allclose(vector, expected, atol=1e-3)
    engine.close()


def refused(depth: int, **keys: Any) -> str:
    shape = (depth, HEIGHT, WIDTH)
    with pytest.raises(ConfigError) as raised:
        resolve(PreprocessConfig(**keys), shape, caffe_defaults(shape))
    return str(raised.value)


def test_a_net_of_other_channels_is_refused_with_the_way_out() -> None:
    assert '\'bgr\' gives 3 channel(s), the net\'s input has 4: write channels = "bgra" or "rgba"' in refused(
        4, channels="bgr"
    )
    assert 'write channels = "gray_alpha"' in refused(2, channels="rgba")
    assert 'write channels = "bgr" or "rgb"' in refused(3, channels="rgba")
    assert 'write arithmetic = "opencv"' in refused(4, preset="pycaffe")
    assert "mean: 3 values for 4 channel(s)" in refused(4, mean=(1.0, 2.0, 3.0))


def test_a_net_of_six_channels_is_listed_and_refused(tmp_path: Path) -> None:
    nets.saved(definition(6), tmp_path, ("fc",))
    listed = Instance(tmp_path).run("net", str(tmp_path / "net.prototxt"), "--json")
    assert listed.returncode == 0, listed.stderr
    assert {"name": "data", "shape": [6, HEIGHT, WIDTH]}.items() <= json.loads(listed.stdout)["blobs"][
        0
    ].items()
    (tmp_path / "images").mkdir()
    options = ["--images", str(tmp_path / "images"), "--net", str(tmp_path / "net.prototxt"), "--blob", "fc"]
    made = Instance(tmp_path).run(
        "init", str(tmp_path / "new"), *options, "--weights", str(tmp_path / "net.caffemodel")
    )
    assert made.returncode == 78
    assert "input 'data' has 6 channels, and featd feeds at most 4: OpenCV and Pillow" in made.stderr


@pytest.mark.parametrize("channels", MEANS)
def test_usual_mistakes_keep_the_number_of_channels(channels: str) -> None:
    shape = (len(MEANS[channels]), HEIGHT, WIDTH)
    spec = resolve(
        PreprocessConfig(channels=channels, mean=tuple(MEANS[channels])), shape, caffe_defaults(shape)
    )
    by_name = dict(variants(spec))
    for name, variant in by_name.items():
        assert variant.depth == shape[0], name
        apply(golden_pictures()[0], variant, np.empty(variant.shape, np.float32))
    other: dict[str, Callable[[], Any]] = {
        "bgra": lambda: [123.0, 117.0, 104.0, 128.0],
        "rgba": lambda: [104.0, 117.0, 123.0, 128.0],
    }
    if channels in other:
        name = {"bgra": "rgba", "rgba": "bgra"}[channels]
        assert list(by_name[f'channels = "{name}"'].mean) == other[channels]()
