"""Numbers that are not finite inside a net come out as in Caffe, which compares them in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from featd.engines.onnxruntime import OnnxRuntimeEngine
from nets import agree, by_caffe, input_layer, layer, load, pictures, saved, write_weights

SOURCES = {
    "Power": layer("x", "Power", "data", "power_param { power: 0.5 }"),
    "reciprocal": layer("x", "Power", "zero", "power_param { power: -1 }"),
    "Log": layer("x", "Log", "data"),
    "BatchNorm": layer("x", "BatchNorm", "data"),
    "LRN": layer("x", "LRN", "data", "lrn_param { alpha: -0.001 beta: 0.5 }"),
    "MVN": layer("x", "MVN", "flat", "mvn_param { eps: 0 }"),
    "Normalize": layer("x", "Normalize", "flat", "norm_param { eps: 0 across_spatial: false }"),
    "BatchNorm of this batch": layer(
        "x", "BatchNorm", "flat", "batch_norm_param { use_global_stats: false eps: 0 }"
    ),
}
POOLS = {
    "MAX": layer("out", "Pooling", "r", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }"),
    "global": layer("out", "Pooling", "r", "pooling_param { global_pooling: true }"),
    "one": layer("out", "Pooling", "r", "pooling_param { kernel_size: 1 stride: 1 }"),
    "SPP": layer("out", "SPP", "r", "spp_param { pyramid_height: 3 }"),
    "Eltwise": layer("out", "Eltwise", "r data zero r", "eltwise_param { operation: MAX }"),
    "reversed": layer("out", "Eltwise", "data r zero", "eltwise_param { operation: MAX }"),
}


@pytest.mark.parametrize("how", POOLS)
@pytest.mark.parametrize("source", SOURCES)
def test_maxima_as_in_caffe(tmp_path: Path, source: str, how: str) -> None:
    zero = layer("zero", "Threshold", "data", "threshold_param { threshold: 60 }")
    flat = layer("flat", "Threshold", "data", "threshold_param { threshold: 1000 }")  # zeros
    text = (
        input_layer(3, 9, 8)
        + zero
        + flat
        + SOURCES[source]
        + layer("r", "ReLU", "x", "relu_param { negative_slope: 1 }")
    )
    model = saved(text + POOLS[how], tmp_path, ("x", "out"))
    if source == "BatchNorm":
        arrays = [np.zeros(3), np.array([-1, 4, 0]), np.ones(1)]
        write_weights(tmp_path / "net.caffemodel", "", {"x": [one.astype(np.float32) for one in arrays]})
    assert not np.isfinite(by_caffe(model, pictures(load(model), 2))["x"]).all() or source == "LRN"
    with np.errstate(all="ignore"):
        agree(model)


LAYERS = {
    "ReLU": ("ReLU", ""),
    "ReLU, leaky": ("ReLU", "relu_param { negative_slope: 0.1 }"),
    "ReLU6": ("ReLU6", ""),
    "PReLU": ("PReLU", ""),
    "ELU": ("ELU", ""),
    "ELU of 0": ("ELU", "elu_param { alpha: 0 }"),
    "Threshold": ("Threshold", "threshold_param { threshold: 0.5 }"),
    "AbsVal": ("AbsVal", ""),
    "BNLL": ("BNLL", ""),
    "Sigmoid": ("Sigmoid", ""),
    "TanH": ("TanH", ""),
    "Exp": ("Exp", ""),
    "Log": ("Log", "log_param { base: 2 }"),
    "square": ("Power", "power_param { power: 2 }"),
    "root": ("Power", "power_param { power: 0.5 }"),
    "reciprocal": ("Power", "power_param { power: -1 }"),
    "Power of 0": ("Power", "power_param { power: 0 }"),
    "line": ("Power", "power_param { scale: 2 shift: 2 }"),
    "Softmax": ("Softmax", ""),
    "ArgMax": ("ArgMax", ""),
    "ArgMax and value": ("ArgMax", "argmax_param { out_max_val: true }"),
    "ArgMax of an axis": ("ArgMax", "argmax_param { axis: 1 }"),
    "value of an axis": ("ArgMax", "argmax_param { axis: 2 out_max_val: true }"),
    "Reduction": ("Reduction", "reduction_param { axis: 1 operation: ASUM }"),
    "MVN": ("MVN", ""),
    "LRN": ("LRN", ""),
    "Normalize": ("Normalize", ""),
    "Normalize of places": ("Normalize", "norm_param { across_spatial: false }"),
    "AVE": ("Pooling", "pooling_param { pool: AVE kernel_size: 2 stride: 2 }"),
    "mask": ("Pooling", "pooling_param { kernel_size: 2 stride: 2 }"),
    "mask of padded": ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }"),
    "mask of all": ("Pooling", "pooling_param { global_pooling: true }"),
    "SUM": ("Eltwise", "eltwise_param { coeff: 1 coeff: -1 }"),
    "SUM without the first": ("Eltwise", "eltwise_param { coeff: 0 coeff: 1 }"),
    "SUM of nothing": ("Eltwise", "eltwise_param { coeff: 0 coeff: 0 }"),
    "PROD": ("Eltwise", "eltwise_param { operation: PROD }"),
    "Scale": ("Scale", "scale_param { bias_term: true }"),
    "InnerProduct": ("InnerProduct", "inner_product_param { num_output: 3 }"),
    "Convolution": ("Convolution", "convolution_param { num_output: 2 kernel_size: 2 }"),
}


def _odd_pictures() -> npt.NDArray[np.float32]:
    """Pictures whose logarithms are NaN, of both infinities and finite, mixed and as whole channels."""
    rng = np.random.default_rng(3)
    made = np.exp(rng.normal(0, 2, (5, 3, 6, 6))).astype(np.float32)
    kind = rng.integers(0, 12, made.shape)
    for at, value in enumerate((-1, 0, np.inf)):
        made[kind == at] = value
        made[2, at] = value
    made[1], made[3, 0, :3], made[3, 1] = -1, 0, 1e-30
    made[4, 2, 5, 5] = -1
    return made


@pytest.mark.parametrize("what", LAYERS)
def test_each_layer_as_in_caffe(tmp_path: Path, what: str) -> None:
    kind, body = LAYERS[what]
    tops = "out mask" if what.startswith("mask") else "out"
    bottoms = "x data" if kind == "Eltwise" else "x"
    text = input_layer(3, 6, 6) + layer("x", "Log", "data") + layer("out", kind, bottoms, body, tops)
    model = saved(text, tmp_path, tuple(tops.split()), engine="onnxruntime")
    batch = _odd_pictures()
    theirs = by_caffe(model, batch, alone=kind == "Normalize")
    ours = OnnxRuntimeEngine(load(model), "cpu", 1).forward(batch)
    for blob, expected in theirs.items():
        assert not np.isfinite(expected).all() or what not in ("ReLU", "ReLU6")
        np.testing.assert_allclose(ours[blob], expected, rtol=1e-4, atol=1e-6)


def test_clip_keeps_its_minimum_for_nan(tmp_path: Path) -> None:
    """As std::max(min, std::min(x, max)) in clip_layer.cpp does; the reference build is older than this layer."""
    text = input_layer(1, 1, 4) + layer("x", "Log", "data")
    text += layer("out", "Clip", "x", "clip_param { min: -1 max: 1 }")
    net = load(saved(text, tmp_path, ("out",), engine="onnxruntime"))
    batch = np.array([-5, 0, 1, np.inf], np.float32).reshape(1, 1, 1, 4)
    made = OnnxRuntimeEngine(net, "cpu", 1).forward(batch)["out"]
    assert made.tolist() == [[-1, -1, 0, 1]]


@pytest.mark.parametrize("body", ["top_k: 2", "top_k: 2 out_max_val: true", "top_k: 2 axis: 1"])
def test_several_largest_among_nan_are_nan(tmp_path: Path, body: str) -> None:
    """What Caffe gives then depends on how its C++ library sorts: no such image gets a vector."""
    text = input_layer(3, 2, 2) + layer("x", "Log", "data")
    text += layer("out", "ArgMax", "x", f"argmax_param {{ {body} }}")
    model = saved(text, tmp_path, ("out",), engine="onnxruntime")
    batch = np.exp(np.random.default_rng(1).normal(0, 2, (2, 3, 2, 2))).astype(np.float32)
    batch[1] = -1
    ours = OnnxRuntimeEngine(load(model), "cpu", 1).forward(batch)["out"]
    assert np.isnan(ours[1]).all()
    np.testing.assert_allclose(ours[0], by_caffe(model, batch[:1])["out"][0], rtol=1e-5)


def test_unpooling_from_a_window_of_nan_is_nan(tmp_path: Path) -> None:
    text = input_layer(1, 4, 4) + layer("x", "Log", "data")
    text += layer("p", "Pooling", "x", "pooling_param { kernel_size: 2 stride: 2 }", "p mask")
    text += layer("e", "Exp", "p") + layer("out", "Unpooling", "e mask", "unpooling_param { unpool_size: 4 }")
    net = load(saved(text, tmp_path, ("out",), engine="onnxruntime"))
    batch = np.ones((2, 1, 4, 4), np.float32)
    batch[1, 0, :2, :2] = -1
    made = OnnxRuntimeEngine(net, "cpu", 1).forward(batch)["out"]
    assert np.isfinite(made[0]).all()
    assert np.isnan(made[1]).any()


def test_a_bn_without_a_deviation(tmp_path: Path) -> None:
    """PSPNet's, with a variance below zero in one channel: NaN, which never wins in MAX pooling."""
    text = input_layer(2, 4, 4) + layer("x", "BN", "data")
    text += layer("out", "Pooling", "x", "pooling_param { global_pooling: true }")
    model = saved(text, tmp_path, ("out",), engine="onnxruntime")
    arrays = [np.ones(2), np.zeros(2), np.zeros(2), np.array([-1, 1])]
    arrays = [one.astype(np.float32).reshape(1, 2, 1, 1) for one in arrays]
    write_weights(tmp_path / "net.caffemodel", "", {"x": arrays})
    made = OnnxRuntimeEngine(load(model), "cpu", 1).forward(np.ones((1, 2, 4, 4), np.float32))["out"]
    assert made[0, 0] == np.finfo(np.float32).min
    assert made[0, 1] == pytest.approx(1, abs=1e-4)
