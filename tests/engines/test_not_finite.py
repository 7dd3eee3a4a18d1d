"""Numbers that are not finite inside a net come out as in Caffe, which compares them in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nets import agree, by_caffe, input_layer, layer, load, pictures, saved, write_weights

SOURCES = {
    "Power": layer("x", "Power", "data", "power_param { power: 0.5 }"),
    "reciprocal": layer("x", "Power", "zero", "power_param { power: -1 }"),
    "Log": layer("x", "Log", "data"),
    "BatchNorm": layer("x", "BatchNorm", "data"),
    "LRN": layer("x", "LRN", "data", "lrn_param { alpha: -0.001 beta: 0.5 }"),
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
    text = (
        input_layer(3, 9, 8)
        + zero
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
