"""Nets for tests: CaffeNet's definition, random weights for any net that featd knows, and real Caffe or a skip."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from featd.config import ModelConfig
from featd.engines.base import Engine
from featd.engines.caffe import CaffeEngine, CaffeUnavailableError, import_caffe
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.net import prototxt
from featd.net.batch import any_batch
from featd.net.graph import Layer, Shape, trace
from featd.net.load import load_net
from featd.net.net import Net
from featd.net.shapes import infer
from featd.net.upgrade import upgrade

TOLERANCE = 1e-5
"""Relative L2 distance within which the engines must agree."""
SHARED = Path(__file__).parents[2] / "shared" / "data"


def real_caffe() -> Any:
    """The module `caffe`. Where it is not: a skip on a laptop, a failure where CI=true."""
    try:
        return import_caffe()
    except CaffeUnavailableError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def shared(name: str) -> Path:
    """A file of the reference data beside the checkout, or a skip."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def random_weights(net: Path | str, out: Path, seed: int = 0) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Write a .caffemodel with fixed random weights for a definition (a path, or its text); returns the arrays.

    Needs no Caffe. Scaled by fan-in so that neither features nor probabilities vanish or saturate on inputs of
    the size of pixels.
    """
    text = net.read_text() if isinstance(net, Path) else net
    layers = any_batch(upgrade(prototxt.parse(text, "test net"), "test net"), "test net")
    shapes = infer(trace(layers, "test net").steps, 1, tolerant=True)
    rng = np.random.default_rng(seed)
    arrays = {
        layer.key: [_array(layer, at, shape, rng) for at, shape in enumerate(shapes.params[layer.key] or [])]
        for layer in layers
    }
    write_weights(out, "test net", arrays)
    return arrays


def _array(layer: Layer, at: int, shape: Shape, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    if layer.type == "BatchNorm":
        # Mean, variance, and the factor both are divided by.
        values = [rng.normal(0, 30, shape), rng.uniform(100, 900, shape), np.full(shape, 0.5)][at]
        return np.asarray(values, np.float32)
    if layer.type in ("Scale", "PReLU", "Bias", "Parameter", "Normalize"):
        return rng.uniform(0.1, 1.5, shape).astype(np.float32)
    if at == 1 or len(shape) < 2:
        return rng.standard_normal(shape, np.float32) * np.float32(0.1)
    transposed = layer.type == "InnerProduct" and layer.param.inner_product_param.transpose
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    return rng.standard_normal(shape, np.float32) * np.float32(0.8 * fan_in**-0.5)


def saved(
    text: str, folder: Path, blobs: tuple[str, ...], seed: int = 0, engine: Any = "auto"
) -> ModelConfig:
    """A definition and random weights for it on disk, and the [model] section that names them."""
    net, weights = folder / "net.prototxt", folder / "net.caffemodel"
    net.write_text(text)
    random_weights(text, weights, seed)
    return ModelConfig(net=str(net), weights=weights, blobs=blobs, engine=engine)


def pictures(net: Net, count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A batch of noise about as large as pixels less their mean."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-120, 135, (count, *net.input_shape)).astype(np.float32)


def distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Relative L2 distance; equal arrays, all-zero ones too, are 0 apart, and so are numbers that are none in both."""
    assert one.shape == other.shape
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    none = np.isnan(one) & np.isnan(other)
    one, other = np.where(none, 0, one), np.where(none, 0, other)
    gap = float(np.linalg.norm((one - other).astype(np.float64)))
    return gap and gap / float(np.linalg.norm(other.astype(np.float64)))


def both_engines(net: Net) -> list[Engine]:
    """Real Caffe and ONNX Runtime with the same net."""
    real_caffe()
    return [CaffeEngine(net, "cpu", 2), OnnxRuntimeEngine(net, "cpu", 2)]


def disagreement(model: ModelConfig, count: int = 2) -> float:
    """The largest distance between real Caffe and ONNX Runtime over the wanted blobs."""
    net = load(model)
    batch = pictures(net, count)
    reference, lowered = (engine.forward(batch) for engine in both_engines(net))
    assert list(reference) == list(lowered) == list(net.blobs)
    for blob, size in net.blobs.items():
        assert reference[blob].shape == (count, size)
    return max(distance(lowered[blob], reference[blob]) for blob in net.blobs)


def by_caffe(
    model: ModelConfig, batch: npt.NDArray[np.float32], alone: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """What straight pycaffe makes of the files as they are, without anything of featd between."""
    caffe = real_caffe()
    net = caffe.Net(model.net, caffe.TEST, weights=str(model.weights))
    entry = net.inputs[0]
    parts = []
    for images in [batch[at : at + 1] for at in range(len(batch))] if alone else [batch]:
        net.blobs[entry].reshape(*images.shape)
        net.reshape()
        net.blobs[entry].data[...] = images
        net.forward()
        parts.append({blob: net.blobs[blob].data.copy().reshape(len(images), -1) for blob in model.blobs})
    return {blob: np.concatenate([part[blob] for part in parts]) for blob in model.blobs}


def agree(model: ModelConfig, count: int = 2, alone: bool = False) -> None:
    """Both engines give what straight pycaffe gives."""
    net = load(model)
    batch = pictures(net, count)
    theirs = by_caffe(model, batch, alone)
    for engine in both_engines(net):
        ours = engine.forward(batch)
        for blob in net.blobs:
            assert distance(ours[blob], theirs[blob]) < TOLERANCE, (engine.name, blob)


def load(model: ModelConfig) -> Net:
    """The net that a [model] section names."""
    return load_net(model.net, model.weights, model.blobs)


def caffenet_prototxt(size: int = 227, classes: int = 1000) -> str:
    """CaffeNet (AlexNet with pooling before normalization), as BVLC's deploy.prototxt has it."""
    layers = [
        _layer("data", "Input", "", f"input_param {{ shape: {{ dim: 10 dim: 3 dim: {size} dim: {size} }} }}")
    ]

    def conv(at: int, bottom: str, outputs: int, kernel: int, rest: str) -> None:
        settings = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} {rest} }}"
        layers.append(_layer(f"conv{at}", "Convolution", bottom, settings))
        layers.append(_layer(f"relu{at}", "ReLU", f"conv{at}", top=f"conv{at}"))

    def pool(at: int, bottom: str) -> None:
        layers.append(
            _layer(f"pool{at}", "Pooling", bottom, "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
        )

    def norm(at: int) -> None:
        settings = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
        layers.append(_layer(f"norm{at}", "LRN", f"pool{at}", settings))

    def full(at: int, bottom: str, outputs: int) -> None:
        settings = f"inner_product_param {{ num_output: {outputs} }}"
        layers.append(_layer(f"fc{at}", "InnerProduct", bottom, settings))

    conv(1, "data", 96, 11, "stride: 4")
    pool(1, "conv1")
    norm(1)
    conv(2, "norm1", 256, 5, "pad: 2 group: 2")
    pool(2, "conv2")
    norm(2)
    conv(3, "norm2", 384, 3, "pad: 1")
    conv(4, "conv3", 384, 3, "pad: 1 group: 2")
    conv(5, "conv4", 256, 3, "pad: 1 group: 2")
    pool(5, "conv5")
    for at, bottom in ((6, "pool5"), (7, "fc6")):
        full(at, bottom, 4096)
        layers.append(_layer(f"relu{at}", "ReLU", f"fc{at}", top=f"fc{at}"))
        layers.append(
            _layer(f"drop{at}", "Dropout", f"fc{at}", "dropout_param { dropout_ratio: 0.5 }", f"fc{at}")
        )
    full(8, "fc7", classes)
    layers.append(_layer("prob", "Softmax", "fc8"))
    return 'name: "CaffeNet"\n' + "".join(layers)


def input_layer(*dims: int) -> str:
    """An Input layer `data` of one picture of (channels, height, width), or of any dims."""
    return _layer(
        "data",
        "Input",
        "",
        f"input_param {{ shape: {{ dim: 1 {' '.join(f'dim: {dim}' for dim in dims)} }} }}",
    )


def layer(name: str, kind: str, bottom: str, settings: str = "", top: str = "") -> str:
    """One layer as text; `bottom` and `top` may name several blobs, parted by blanks. `top` is the name if empty."""
    return _layer(name, kind, bottom, settings, top)


def _layer(name: str, kind: str, bottom: str, settings: str = "", top: str = "") -> str:
    bottoms = "".join(f' bottom: "{one}"' for one in bottom.split())
    tops = "".join(f' top: "{one}"' for one in (top or name).split())
    return f'layer {{ name: "{name}" type: "{kind}"{bottoms}{tops} {settings} }}\n'


def write_weights(path: Path, net: str, layers: Mapping[str, Sequence[npt.NDArray[Any]]]) -> None:
    """Write float32 arrays as a .caffemodel that real Caffe reads; layers by name, arrays in Caffe's order."""
    with path.open("wb") as file:
        file.write(_tagged(1, net.encode()))
        for name, arrays in layers.items():
            blobs = [_blob_header(array) for array in arrays]
            head = _tagged(1, name.encode("utf-8", "surrogateescape"))
            sizes = [len(header) + array.size * 4 for header, array in zip(blobs, arrays, strict=True)]
            body = sum(len(_prefix(7, size)) + size for size in sizes)
            file.write(_prefix(100, len(head) + body) + head)
            for header, array, size in zip(blobs, arrays, sizes, strict=True):
                file.write(_prefix(7, size) + header)
                file.write(np.ascontiguousarray(array, "<f4").tobytes())


def _blob_header(array: npt.NDArray[Any]) -> bytes:
    dims = b"".join(_varint(dim) for dim in array.shape)
    return _tagged(7, _tagged(1, dims)) + _prefix(5, array.size * 4)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefix(number: int, size: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(size)


def _tagged(number: int, payload: bytes) -> bytes:
    return _prefix(number, len(payload)) + payload
