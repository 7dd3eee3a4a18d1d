"""What `featd net` is told of a net."""

from __future__ import annotations

from pathlib import Path

import pytest

from featd.errors import ModelError
from featd.net.describe import describe
from nets import caffenet_prototxt, input_layer, layer, random_weights, saved


def test_caffenet(tmp_path: Path) -> None:
    model = saved(caffenet_prototxt(), tmp_path, ("fc7",))
    report = describe(model.net, model.weights)
    assert (report.name, report.source) == ("CaffeNet", model.net)
    blobs = {blob.name: (blob.shape, blob.size) for blob in report.blobs}
    assert list(blobs)[:4] == ["data", "conv1", "pool1", "norm1"]
    assert blobs["pool5"] == ((256, 6, 6), 9216)
    assert blobs["fc7"] == ((4096,), 4096)
    layers = {one.name: one for one in report.layers}
    assert layers["conv2"].weights == 256 * 48 * 25 + 256
    assert layers["conv2"].top_shapes == ((1, 256, 27, 27),)
    assert (layers["relu7"].bottoms, layers["relu7"].tops) == (("fc7",), ("fc7",))
    assert all(one.onnxruntime and one.problem is None for one in report.layers)
    assert report.weights is not None
    assert report.weights.matched == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    assert (report.weights.missing, report.weights.unused, report.weights.problem) == ((), (), None)


def test_gist() -> None:
    report = describe("gist")
    assert report.blobs[-1].name == "gist"
    assert report.blobs[-1].size == 544
    assert report.weights is not None
    assert report.weights.missing == ()


def test_a_net_that_cannot_be_run_is_listed_all_the_same(tmp_path: Path) -> None:
    text = (
        layer("db", "Data", "", 'data_param { source: "x" }', "images label")
        + input_layer(3, 8, 8)
        + layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")
        + layer("strange", "FancyLayer", "ip")
        + layer("after", "ReLU", "strange")
        + layer("bad", "Convolution", "data", "convolution_param { num_output: 2 kernel_size: 20 }")
    )
    path, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    path.write_text(text)
    other = input_layer(3, 8, 8) + layer(
        "other", "InnerProduct", "data", "inner_product_param { num_output: 4 }"
    )
    random_weights(other, weights)
    report = describe(str(path), weights)
    assert [(one.name, one.onnxruntime) for one in report.layers] == [
        ("db", False),
        ("data", True),
        ("ip", True),
        ("strange", False),
        ("after", True),
        ("bad", False),
    ]
    problems = {one.name: one.problem for one in report.layers if one.problem}
    assert "refuses" in problems["db"]
    assert "larger than" in problems["bad"]
    assert [blob.size for blob in report.blobs] == [0, 0, 192, 4, 0, 0, 0]
    assert report.weights is not None
    assert (report.weights.missing, report.weights.unused) == (("ip",), ("other",))


def test_weights_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    text = input_layer(3, 8, 8) + layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")
    model = saved(text, tmp_path, ("ip",))
    random_weights(text.replace("num_output: 4", "num_output: 5"), tmp_path / "net.caffemodel")
    report = describe(model.net, model.weights)
    assert report.weights is not None
    assert "5x192" in (report.weights.problem or "")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        describe(str(tmp_path / "gone.prototxt"))
