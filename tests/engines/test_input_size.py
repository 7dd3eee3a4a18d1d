"""Nets at another input size than their definition's, against pycaffe with a reshaped input."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featd.config import ModelConfig, PreprocessConfig
from featd.errors import ConfigError, ModelError
from featd.net.load import load_net
from featd.net.net import Net
from featd.preprocess.resolve import input_size
from featd.worker.model import load_model
from nets import TOLERANCE, both_engines, by_caffe, distance, input_layer, layer, pictures, saved

INPUTS = {
    "Input": input_layer(3, 24, 20),
    "input_dim": 'input: "data" input_dim: 10 input_dim: 3 input_dim: 24 input_dim: 20\n',
    "input_shape": 'input: "data" input_shape { dim: 10 dim: 3 dim: 24 dim: 20 }\n',
    "MemoryData": layer(
        "d",
        "MemoryData",
        "",
        "memory_data_param { batch_size: 10 channels: 3 height: 24 width: 20 }",
        "data label",
    ),
    "DummyData": layer(
        "d", "DummyData", "", "dummy_data_param { num: 10 channels: 3 height: 24 width: 20 }", "data"
    ),
}
TRUNK = (
    layer(
        "conv", "Convolution", "data", "convolution_param { num_output: 16 kernel_size: 5 stride: 2 pad: 1 }"
    )
    + layer("norm", "BatchNorm", "conv")
    + layer("scale", "Scale", "norm", "scale_param { bias_term: true }")
    + layer("relu", "ReLU", "scale", top="scale")
    + layer("lrn", "LRN", "scale", "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }")
    + layer("pool", "Pooling", "lrn", "pooling_param { kernel_size: 3 stride: 2 }")
)
IP = "inner_product_param { num_output: 7 }"
HEADS = {
    "map": layer("x", "Convolution", "pool", "convolution_param { num_output: 5 kernel_size: 1 }"),
    "global pooling": layer("gap", "Pooling", "pool", "pooling_param { pool: AVE global_pooling: true }")
    + layer("x", "InnerProduct", "gap", IP),
    "pyramid": layer("spp", "SPP", "pool", "spp_param { pyramid_height: 2 }") + layer("x", "InnerProduct", "spp", IP),
    "upsampled": layer("up", "Deconvolution", "pool", "convolution_param { num_output: 4 kernel_size: 4 stride: 2 }")
    + layer("cut", "Crop", "up lrn", "crop_param { axis: 2 offset: 1 }", "cut")
    + layer("flat", "Reshape", "cut", "reshape_param { shape { dim: 0 dim: 4 dim: -1 } }")
    + layer("x", "Softmax", "flat", "softmax_param { axis: 1 }"),
}  # fmt: skip
"""Layers above the trunk, which take any size. The pyramid has a fully connected layer above it."""


def at_size(model: ModelConfig, **keys: Any) -> Net:
    return load_net(model.net, model.weights, model.blobs, partial(input_size, PreprocessConfig(**keys)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(20, 20), (19, 33), (40, 41)])
def test_another_size(tmp_path: Path, head: str, size: tuple[int, int]) -> None:
    model = saved(INPUTS["Input"] + TRUNK + HEADS[head], tmp_path, ("pool", "x"))
    net = at_size(model, crop=size)
    assert net.input_shape == (3, *size)
    batch = pictures(net, 3)
    theirs = by_caffe(model, batch)
    for engine in both_engines(net):
        assert engine.input_shape == net.input_shape
        for blob, vectors in engine.forward(batch).items():
            assert distance(vectors, theirs[blob]) < TOLERANCE, (engine.name, blob)


@pytest.mark.parametrize("form", INPUTS)
def test_every_way_to_write_an_input(tmp_path: Path, form: str) -> None:
    text = TRUNK + HEADS["global pooling"]
    model = saved(INPUTS["Input"] + text, tmp_path, ("x",))
    batch = pictures(at_size(model, size=(16, 17)), 2)
    theirs = by_caffe(model, batch)["x"]
    Path(model.net).write_text(INPUTS[form] + text)
    net = at_size(model, size=(16, 17))
    for engine in both_engines(net):
        assert distance(engine.forward(batch)["x"], theirs) < TOLERANCE, engine.name


def test_a_fully_connected_layer_takes_one_size(tmp_path: Path) -> None:
    text = INPUTS["Input"] + TRUNK + layer("fc6", "InnerProduct", "pool", IP)
    model = saved(text, tmp_path, ("fc6",))
    # 5 x 4 of 16 channels in the definition's size, 4 x 4 in this one.
    says = r"layer 'fc6' of type InnerProduct takes 320 inputs, not 256: .*19x20 .*preprocess\.size.*24x20"
    with pytest.raises(ModelError, match=says):
        at_size(model, size=(19, 20))
    assert at_size(model.model_copy(update={"blobs": ("pool",)}), size=(19, 20)).blobs == {"pool": 256}


def test_other_layers_that_take_one_size(tmp_path: Path) -> None:
    scaled = layer("x", "Scale", "data", "scale_param { axis: 1 num_axes: -1 }")
    with pytest.raises(
        ModelError, match=r"layer 'x' of type Scale has weights of 3x24x20, not 3x30x30: .*size"
    ):
        at_size(saved(INPUTS["Input"] + scaled, tmp_path, ("x",)), crop=(30, 30))
    fixed = layer("x", "Reshape", "data", "reshape_param { shape { dim: 0 dim: 3 dim: 480 } }")
    with pytest.raises(ModelError, match=r"layer 'x' of type Reshape.*30x30 by preprocess\.size .*24x20"):
        at_size(saved(INPUTS["Input"] + fixed, tmp_path, ("x",)), crop=(30, 30))
    kernel = layer("x", "Convolution", "data", "convolution_param { num_output: 2 kernel_size: 15 }")
    with pytest.raises(ModelError, match=r"its kernel is larger .*12x12 by preprocess\.size"):
        at_size(saved(INPUTS["Input"] + kernel, tmp_path, ("x",)), size=(12, 12))


def test_what_asks_for_another_size(tmp_path: Path) -> None:
    """`crop`, or a `size` from which the definition's input cannot be cut. The fingerprint of all else stays."""
    model = saved(INPUTS["Input"] + TRUNK, tmp_path, ("pool",))

    def made(**keys: Any) -> Any:
        made = load_model(model, PreprocessConfig(**keys), "float32", "cpu", 1)
        made.engine.close()
        return made

    own = made()
    for keys, crop, size in (
        ({"size": (48, 40)}, (24, 20), (48, 40)),
        ({"size": (16, 40)}, (16, 40), (16, 40)),
        ({"size": (16, 20)}, (16, 20), (16, 20)),
        ({"crop": (30, 31)}, (30, 31), (256, 256)),
        ({"crop": (300, 31)}, (300, 31), (300, 256)),
        ({"crop": 32, "preset": "pycaffe"}, (32, 32), (32, 32)),
        ({"crop": 32, "size": 40, "crops": "ten"}, (32, 32), (40, 40)),
    ):
        found = made(**keys)
        assert found.preprocess.crop == crop
        assert found.preprocess.size == size
        assert found.engine.input_shape == (3, *(size if keys.get("crops") else crop))
        assert found.fingerprint != own.fingerprint
    assert made(crop=(24, 20)).fingerprint == own.fingerprint
    with pytest.raises(ConfigError, match=r"preprocess\.size: .*smaller than the net's input"):
        made(crop=32, size=30)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"size": (20, 24)}, "size = [24, 20]"),
        ({"crop": (20, 24)}, "crop = [24, 20]"),
        ({"size": (24, 20)}, ""),
        ({"size": (30, 24)}, ""),
        ({"size": (20, 20)}, ""),
        ({}, ""),
    ],
)
def test_height_and_width_exchanged_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: dict[str, Any], told: str
) -> None:
    caplog.set_level(logging.WARNING, "featd.preprocess")
    at_size(saved(INPUTS["Input"] + TRUNK + HEADS["map"], tmp_path, ("x",)), **keys)
    assert ("height and width exchanged" in caplog.text) == bool(told)
    assert told in caplog.text


def test_a_square_input_has_nothing_to_exchange(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    at_size(saved(input_layer(3, 24, 24) + TRUNK + HEADS["map"], tmp_path, ("x",)), size=(24, 24))
    assert not caplog.records
