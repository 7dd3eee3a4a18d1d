"""BatchNorm, Scale and Bias folded into what stands before them, within the tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featd.config import ModelConfig
from featd.net.lower import to_onnx
from nets import (
    agree,
    input_layer,
    layer,
    load,
    random_weights,
    saved,
)

FOLDED = (
    layer("c", "Convolution", "data", "convolution_param { num_output: 6 kernel_size: 3 group: 3 }")
    + layer("cn", "BatchNorm", "c", top="c")
    + layer("cs", "Scale", "c", "scale_param { bias_term: true }", top="c")
    + layer("cb", "Bias", "c", top="cb")
    + layer("r", "ReLU", "cb", top="r")
    + layer(
        "d",
        "Deconvolution",
        "r",
        "convolution_param { num_output: 4 group: 2 kernel_size: 2 bias_term: false }",
    )
    + layer("dn", "BatchNorm", "d", "batch_norm_param { eps: 0.1 }")
    + layer("n", "BatchNorm", "dn")
    + layer("ns", "Scale", "n", top="ns")
    + layer("t", "TanH", "ns")
    + layer("ip", "InnerProduct", "t", "inner_product_param { num_output: 5 transpose: true }")
    + layer("is", "Scale", "ip", top="is")
)


def operations(model: ModelConfig) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load_from_string(to_onnx(load(model))).graph.node]


def test_folding(tmp_path: Path) -> None:
    model = saved(input_layer(3, 8, 8) + FOLDED, tmp_path, ("is",))
    assert operations(model) == ["Conv", "Relu", "ConvTranspose", "Tanh", "Flatten", "Gemm", "Reshape"]
    agree(model)
    # What someone wants to see is computed as it stands.
    seen = model.model_copy(update={"blobs": ("c", "d", "n", "ip", "is")})
    assert operations(seen).count("BatchNormalization") == 4
    agree(seen)


def test_channels_along_another_axis_are_not_folded(tmp_path: Path) -> None:
    conv = "convolution_param { axis: 2 num_output: 3 kernel_size: 2 }"
    text = input_layer(3, 8, 8) + layer("c", "Convolution", "data", conv) + layer("n", "BatchNorm", "c")
    model = saved(text, tmp_path, ("n",))
    assert "BatchNormalization" in operations(model)
    agree(model)


@pytest.mark.parametrize("far", [0.5, 3e3])
def test_a_mean_far_from_zero(tmp_path: Path, far: float) -> None:
    """x * factor + shift would lose what x and the mean have in common."""
    text = input_layer(3, 8, 8) + layer("x", "Power", "data", f"power_param {{ scale: 0.01 shift: {far} }}")
    text += layer("n", "BatchNorm", "x") + layer("s", "Scale", "n", "scale_param { bias_term: true }")
    model = saved(text, tmp_path, ("s",))
    arrays = random_weights(text, tmp_path / "net.caffemodel")
    arrays["n"] = [np.full(3, far, np.float32), np.full(3, 0.25, np.float32), np.ones(1, np.float32)]
    from nets import write_weights

    write_weights(tmp_path / "net.caffemodel", "x", arrays)
    agree(model)


def test_batch_norm_without_statistics(tmp_path: Path) -> None:
    """A third array of 0 means mean and variance 0, not a division by zero."""
    from nets import write_weights

    text = input_layer(3, 4, 4) + layer("n", "BatchNorm", "data")
    model = saved(text, tmp_path, ("n",))
    write_weights(tmp_path / "net.caffemodel", "x", {"n": [np.ones(3), np.ones(3), np.zeros(1)]})
    agree(model)
