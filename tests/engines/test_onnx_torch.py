"""Nets that PyTorch exports, with both of its exporters: the vectors are those of plain ONNX Runtime, bit for bit.

PyTorch is large, and none of featd's extras has it: `pip install torch onnxscript`, then `pytest -m long`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featd.engines.select import load_engine
from featd.net.describe import describe
from featd.net.load import load_net
from featd.net.onnx_file.net import OnnxNet
from onnx_nets import plain_of_each

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
OLD, NEW = "torchscript", "dynamo"
SIDE = 48
BATCH = np.random.default_rng(1).standard_normal((4, 3, SIDE, SIDE)).astype(np.float32)


def small_cnn(torch: Any) -> Any:
    """With batch normalisation, a dense head, and a gate for each channel as MobileNet has it."""
    nn = torch.nn

    class Cnn(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
            )
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
            self.second = nn.Sequential(
                nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head = nn.Linear(32, 10)

        def forward(self, pictures: Any) -> Any:
            first = self.first(pictures)
            pooled = self.second(first * self.gate(first))
            return pooled, self.head(pooled)

    return Cnn()


def small_transformer(torch: Any) -> Any:
    """A vision transformer: patches, a class token, positions, two layers of PyTorch's own attention."""
    nn = torch.nn

    class Transformer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 16, 16)
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.places = nn.Parameter(torch.randn(1, (SIDE // 16) ** 2 + 1, 32))
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
            self.attentions = nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2))
            self.dense = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
            )

        def forward(self, pictures: Any) -> Any:
            tokens = self.patches(pictures).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.places
            for at in range(2):
                normal = self.norms[2 * at](tokens)
                tokens = tokens + self.attentions[at](normal, normal, normal, need_weights=False)[0]
                tokens = tokens + self.dense[at](self.norms[2 * at + 1](tokens))
            return tokens, tokens[:, 0]

    return Transformer()


@pytest.mark.parametrize("exporter", [OLD, NEW])
@pytest.mark.parametrize("form", ["one image", "four images", "any batch", "any batch, float16", "any size"])
@pytest.mark.parametrize("make", [small_cnn, small_transformer])
def test_vectors_of_nets_that_pytorch_exports(tmp_path: Path, make: Any, form: str, exporter: str) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    if exporter == NEW and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    if form == "any size" and make is small_transformer:
        pytest.skip("its positions are for one size")
    path = str(tmp_path / "net.onnx")
    half = form.endswith("float16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        export(torch, make(torch), path, form, exporter)
    assert (tmp_path / "net.onnx.data").exists() == (exporter == NEW)

    report = describe(path)
    assert report.input is not None
    assert ("float16" in report.input, "shown for" in report.input) == (half, form == "any size")
    outputs = report.outputs
    inner = [blob.name for blob in report.blobs if blob.name not in outputs]
    assert len(inner) > 5
    compare(path, outputs)
    compare(path, outputs[1:])
    compare(path, (inner[len(inner) // 3], outputs[0]), exact=False)


def export(torch: Any, net: Any, path: str, form: str, exporter: str) -> None:
    images = 1 if form == "one image" else 4
    pictures = torch.randn(images, 3, SIDE, SIDE)
    net = net.eval()
    if form.endswith("float16"):
        net, pictures = net.half(), pictures.half()
    axes: dict[int, str] = {}
    if form.startswith("any"):
        axes = {0: "batch"} | ({2: "height", 3: "width"} if form == "any size" else {})
    if exporter == OLD:
        torch.onnx.export(
            net,
            (pictures,),
            path,
            dynamo=False,
            input_names=["pixels"],
            opset_version=17,
            dynamic_axes={"pixels": axes} if axes else None,
        )
    else:
        shapes = dict.fromkeys(axes, torch.export.Dim.AUTO)
        torch.onnx.export(
            net,
            (pictures,),
            path,
            dynamo=True,
            verbose=False,
            external_data=True,
            input_names=["pixels"],
            dynamic_shapes=(shapes,) if axes else None,
        )


def compare(path: str, blobs: Sequence[str], *, exact: bool = True) -> None:
    """With plain ONNX Runtime on the whole file. It has to be given inner tensors as outputs, and what is behind them
    decides with it how it joins operators: their last bits may differ."""
    net = load_net(path, None, blobs, lambda own: own or (SIDE, SIDE))
    assert isinstance(net, OnnxNet)
    engine = load_engine(net, "auto", "cpu", 1)
    step = net.input.batch or len(BATCH)
    batches = [net.input.feed(BATCH[at : at + step]) for at in range(0, len(BATCH), step)]
    theirs = plain_of_each(path, batches, net.tensors, net.without)
    mine = engine.forward(BATCH)
    engine.close()
    for at, blob in enumerate(blobs):
        expected = np.concatenate([one[at].reshape(step, -1) for one in theirs]).astype(np.float32)
        assert expected.std() > 0
        if exact:
            np.testing.assert_array_equal(mine[blob], expected)
        else:
            tolerance = 1e-2 if net.input.half else 1e-5
            np.testing.assert_allclose(mine[blob], expected, rtol=0, atol=tolerance * np.abs(expected).max())
