"""Other precisions than float32: what they change, what they do not, and who refuses them.

ONNX Runtime's CPU provider runs graphs of float16 with its own conversions, which shows whether a graph is sound and
how far its vectors are from those of float32. Speed, and the arithmetic of GPUs, are untested."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from architectures.registry import NETS
from featd.config import ModelConfig, PreprocessConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.engines.precision import FLOAT16, TOLERANCES, require_precision
from featd.engines.session import Session
from featd.errors import ConfigError, EngineError, ModelError
from featd.net.load import load_net
from featd.net.lower import output_name, to_onnx
from featd.net.net import Net
from featd.worker import golden
from featd.worker.golden import Golden, distances
from featd.worker.model import load_model, read_model
from nets import load, pictures, saved, write_weights

SMALL = """
input: "data" input_shape { dim: 1 dim: 3 dim: 32 dim: 32 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 5 stride: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ave" type: "Pooling" bottom: "pool" top: "ave"
  pooling_param { pool: AVE kernel_size: 3 stride: 1 pad: 1 } }
layer { name: "both" type: "Eltwise" bottom: "pool" bottom: "ave" top: "both" eltwise_param { coeff: 2 coeff: -1 } }
layer { name: "cat" type: "Concat" bottom: "both" bottom: "pool" top: "cat" }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" }
layer { name: "ip" type: "InnerProduct" bottom: "cat" top: "ip" inner_product_param { num_output: 24 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def in_half(net: Net, batch: np.ndarray) -> dict[str, np.ndarray]:
    names = [output_name(blob) for blob in net.blobs]
    session = Session(net.source, partial(to_onnx, net, half=True), names, "cpu", 2)
    return dict(zip(net.blobs, session.run(batch), strict=True))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / lengths).min())


@pytest.mark.parametrize("key", ["small", "gist", "SqueezeNet 1.1", "ResNet-18"])
def test_vectors_in_float16_are_near_those_of_float32(tmp_path: Path, key: str) -> None:
    if key == "gist":
        net = load_net("gist")
    elif key == "small":
        net = load(saved(SMALL, tmp_path, ("conv", "norm", "cat", "ip", "prob")))
    else:
        net = load(saved(NETS[key].draw().text(NETS[key].form), tmp_path, NETS[key].blobs[-1:]))
    assert isinstance(net, Net)
    batch = pictures(net, 3)
    wanted = OnnxRuntimeEngine(net, "cpu", 2).forward(batch)
    for blob, vectors in in_half(net, batch).items():
        assert vectors.dtype == np.float32
        assert 0 < distances(vectors, wanted[blob]).max() < TOLERANCES[FLOAT16] / 3, blob
        assert cosine(vectors, wanted[blob]) > 0.99999, blob


def test_what_computes_in_float16(tmp_path: Path) -> None:
    """Convolutions and what stands between them; squares, long sums and exponents stay in float32."""
    net = load(saved(SMALL, tmp_path, ("prob",)))
    made = onnx.shape_inference.infer_shapes(
        onnx.ModelProto.FromString(to_onnx(net, half=True)), strict_mode=True
    )
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*made.graph.value_info, *made.graph.output)}
    half = {node.op_type for node in made.graph.node if kinds[node.output[0]] == onnx.TensorProto.FLOAT16}
    assert half == {"Conv", "Relu", "MaxPool", "Mul", "Add", "Concat", "Flatten", "Gemm", "Cast"}
    full = {node.op_type for node in made.graph.node if kinds[node.output[0]] == onnx.TensorProto.FLOAT}
    assert full >= {"LRN", "AveragePool", "Softmax"}
    # Half as large as before, and nothing else has changed.
    before, after = (len(to_onnx(net, half=half)) for half in (False, True))
    assert 0.45 < after / before < 0.75
    assert to_onnx(net) == to_onnx(net, half=False)


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("conv",))
    arrays = {"conv": [np.full((8, 3, 5, 5), 70_000, np.float32), np.zeros(8, np.float32)]}
    assert model.weights is not None
    write_weights(model.weights, "test net", arrays)
    with pytest.raises(ModelError, match=r"beyond 65,504, and a weight is 70,000: write precision"):
        to_onnx(load(model), half=True)


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_the_cpu_refuses_other_precisions(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"model.precision: '{precision}' is for GPUs: .*float32"):
        require_precision(precision, "cpu")
    require_precision(precision, "cuda:0")
    require_precision("float32", "cpu")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"engine": "caffe", "precision": "tf32"}, "real Caffe computes in float32"),
        ({"net": "net.onnx", "precision": "float16"}, "export the net in float16"),
        ({"precision": "bfloat16"}, "'float32', 'tf32' or 'float16'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**keys)


def test_it_is_in_the_fingerprint_only_off_its_default() -> None:
    specs = [
        read_model(ModelConfig(precision=precision), PreprocessConfig(), "float32")[2]
        for precision in ("float32", "tf32", "float16")
    ]
    assert [spec.pop("precision", None) for spec in specs] == [None, "tf32", "float16"]
    assert specs[0] == specs[1] == specs[2]


def test_golden_vectors_may_differ_by_as_much_as_the_precision_rounds() -> None:
    """Loaded on the CPU, as a picture to search for is: there it computes in float32."""
    plain, tf32 = (
        load_model(ModelConfig(precision=precision), PreprocessConfig(), "float32", "cpu", 1)
        for precision in ("float32", "tf32")
    )
    made = Golden(plain, 8).run()
    stored = golden.pack({blob: values * np.float32(1.005) for blob, values in made.items()})
    Golden(tf32, 8).check(stored, made)
    with pytest.raises(EngineError, match=r"tolerance 0\.001"):
        Golden(plain, 8).check(stored, made)
