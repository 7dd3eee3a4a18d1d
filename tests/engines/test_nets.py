"""Whole nets in both engines: CaffeNet and AlexNet, old forms, any blob, any batch."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest

from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.net import prototxt
from featd.net.lower import to_onnx
from nets import (
    TOLERANCE,
    both_engines,
    caffenet_prototxt,
    disagreement,
    distance,
    input_layer,
    layer,
    load,
    pictures,
    random_weights,
    real_caffe,
    saved,
    shared,
)

BLOBS = ("conv1", "norm2", "pool5", "fc6", "fc7", "fc8", "prob")

V1_TEXT = """
name: "old"
input: "data" input_dim: 10 input_dim: 3 input_dim: 16 input_dim: 20
layers { name: "train" type: DATA top: "data2" top: "label" include { phase: TRAIN } data_param { source: "x" } }
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.01 } } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "pool/3x3_s2" type: POOLING bottom: "conv" top: "pool/3x3_s2"
  pooling_param { kernel_size: 3 stride: 2 } }
layers { name: "ip" type: INNER_PRODUCT bottom: "pool/3x3_s2" top: "ip" inner_product_param { num_output: 5 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "ip" top: "loss" }
"""


@pytest.fixture(scope="module")
def caffenet(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return saved(caffenet_prototxt(), tmp_path_factory.mktemp("caffenet"), BLOBS)


def test_caffenet(caffenet: ModelConfig) -> None:
    net = load(caffenet)
    sizes = [290400, 43264, 9216, 4096, 4096, 1000, 1000]
    assert net.blobs == dict(zip(BLOBS, sizes, strict=True))
    batch = pictures(net, 2)
    reference, lowered = (engine.forward(batch) for engine in both_engines(net))
    assert max(distance(lowered[blob], reference[blob]) for blob in BLOBS) < TOLERANCE
    # As pycaffe's net.blobs holds it: after the in-place ReLU and Dropout. And the weights leave something over.
    assert reference["fc7"].min() == 0
    assert 0.2 < (reference["fc7"] > 0).mean() < 0.8
    assert reference["prob"].max() < 0.9


def test_caffenet_is_the_published_one() -> None:
    text = shared("caffenet_deploy.prototxt").read_text()
    assert prototxt.parse(text, "shared") == prototxt.parse(caffenet_prototxt(), "ours")


def test_alexnet(tmp_path: Path) -> None:
    net, weights = shared("alexnet_deploy.prototxt"), tmp_path / "alexnet.caffemodel"
    random_weights(net, weights)
    model = ModelConfig(net=str(net), weights=weights, blobs=("conv1", "pool1", "pool5", "fc7", "prob"))
    assert disagreement(model) < TOLERANCE


def test_blobs_are_what_pycaffe_says(tmp_path: Path) -> None:
    """Straight pycaffe on the files as they are, without anything of featd between."""
    caffe = real_caffe()
    text = caffenet_prototxt(size=67, classes=10)
    model = saved(text, tmp_path, ("conv1", "pool2", "fc7", "prob"))
    net = load(model)
    batch = pictures(net, 10)
    plain = caffe.Net(model.net, caffe.TEST, weights=str(model.weights))
    plain.blobs["data"].data[...] = batch
    plain.forward()
    for engine in both_engines(net):
        for blob, vectors in engine.forward(batch).items():
            assert distance(vectors, plain.blobs[blob].data.reshape(10, -1)) < TOLERANCE, (engine.name, blob)


@pytest.mark.parametrize("blobs", [("pool/3x3_s2", "ip"), ("data", "conv"), ("ip",)])
def test_old_form(tmp_path: Path, blobs: tuple[str, ...]) -> None:
    assert disagreement(saved(V1_TEXT, tmp_path, blobs), 3) < TOLERANCE


def test_old_weights_of_real_caffe(tmp_path: Path) -> None:
    """V1 `layers` with legacy 4-D shapes, written by Caffe's own schema."""
    real_caffe()
    from caffe.proto import caffe_pb2

    model = saved(V1_TEXT, tmp_path, ("ip",))
    assert model.weights is not None
    modern = load(model)
    batch = pictures(modern, 2)
    was = both_engines(modern)[0].forward(batch)["ip"]
    old = caffe_pb2.NetParameter()
    for name, weights in modern.weights.items():
        stored = old.layers.add(name=name, type=4 if name == "conv" else 14)
        for weight in weights:
            dims = (1,) * (4 - len(weight.shape)) + weight.shape
            blob = stored.blobs.add(num=dims[0], channels=dims[1], height=dims[2], width=dims[3])
            blob.data.extend(weight.array().ravel().tolist())
    model.weights.write_bytes(old.SerializeToString())
    legacy = load(model)
    assert [one.stored.legacy for one in legacy.weights["ip"]] == [True, True]
    for engine in both_engines(legacy):
        assert distance(engine.forward(batch)["ip"], was) < TOLERANCE
    # Whatever the file holds by now: the engines compute with the bytes that were checked and hashed.
    for engine in both_engines(modern):
        assert distance(engine.forward(batch)["ip"], was) < TOLERANCE


def test_weights_saved_by_real_caffe(tmp_path: Path) -> None:
    caffe = real_caffe()
    model = saved(caffenet_prototxt(size=67, classes=10), tmp_path, ("fc7",))
    ours = load(model)
    path = tmp_path / "saved by caffe.caffemodel"
    caffe.Net(model.net, caffe.TEST, weights=str(model.weights)).save(str(path))
    theirs = load(model.model_copy(update={"weights": path}))
    for name, weights in ours.weights.items():
        for one, other in zip(weights, theirs.weights[name], strict=True):
            np.testing.assert_array_equal(one.array(), other.array())


def test_shared_weights(tmp_path: Path) -> None:
    """Two layers whose params have one name hold one array: the one read last."""
    param = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 192 }'
    text = (
        input_layer(3, 8, 8)
        + layer("a", "InnerProduct", "data", param)
        + layer("b", "InnerProduct", "a", param)
    )
    assert disagreement(saved(text, tmp_path, ("a", "b"))) < TOLERANCE


def test_any_batch_and_fresh_arrays(tmp_path: Path) -> None:
    net = load(saved(caffenet_prototxt(size=67, classes=10), tmp_path, ("fc7", "prob")))
    batch = pictures(net, 5)
    for engine in both_engines(net):
        whole = engine.forward(batch)
        kept = {blob: vectors.copy() for blob, vectors in whole.items()}
        for count in (1, 3, 5):
            part = engine.forward(batch[-count:])
            for blob, vectors in part.items():
                assert vectors.flags.c_contiguous
                assert vectors.dtype == np.float32
                assert distance(vectors, kept[blob][-count:]) < TOLERANCE
                vectors[:] = -1
        for blob, vectors in whole.items():
            np.testing.assert_array_equal(vectors, kept[blob])
        with pytest.raises(ValueError, match=r"\(n, 3, 67, 67\)"):
            engine.forward(batch[:, :1])
        engine.close()
        engine.close()


def test_lowering_is_deterministic(tmp_path: Path) -> None:
    model = saved(V1_TEXT, tmp_path, ("ip",))
    assert to_onnx(load(model)) == to_onnx(load(model))


def test_every_node_has_a_name_of_its_own(tmp_path: Path) -> None:
    """onnxruntime 1.19 does not load a net of which it fuses two nodes without."""
    halves = layer("s", "Slice", "data", "slice_param { axis: 2 }", "a b")
    text = input_layer(3, 8, 8) + halves + layer("t", "Slice", "a", "slice_param { axis: 2 }", "c d")
    model = saved(text, tmp_path, ("b", "c", "d"))
    nodes = onnx.load_from_string(to_onnx(load(model))).graph.node
    names = [node.name for node in nodes if node.op_type == "Slice"]
    assert len(set(names)) == 4
    assert "" not in names
    assert disagreement(model) < TOLERANCE


def test_weights_outlive_the_net(tmp_path: Path) -> None:
    """ONNX Runtime reads them where they lie, even when nothing but its session holds them."""
    net = load(saved(caffenet_prototxt(size=67, classes=10), tmp_path, ("fc7",)))
    batch = pictures(net, 1)
    engine = OnnxRuntimeEngine(net, "cpu", 1)
    was = engine.forward(batch)["fc7"]
    del net
    gc.collect()
    others = [np.full(1 << 20, np.nan, np.float32) for _ in range(60)]
    np.testing.assert_array_equal(engine.forward(batch)["fc7"], was)
    del others
    engine.close()


def test_only_the_needed_layers_are_run(tmp_path: Path) -> None:
    net = load(saved(caffenet_prototxt(size=67, classes=10), tmp_path, ("pool1",)))
    assert [step.layer.name for step in net.layers] == ["data", "conv1", "relu1", "pool1"]
    assert set(net.unused_weights) == {"conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}


def test_settings_that_would_abort_caffe_are_taken_out(tmp_path: Path) -> None:
    """None of them decides a vector in the TEST phase; each aborts real Caffe, or makes it train."""
    conv = (
        "param { lr_mult: 1 } param { lr_mult: 2 } param { lr_mult: 3 } propagate_down: true propagate_down: true "
        'convolution_param { num_output: 4 kernel_size: 3 engine: CUDNN weight_filler { type: "of my fork" } }'
    )
    pool = "loss_weight: 1 loss_weight: 1 pooling_param { kernel_size: 2 engine: CUDNN }"
    text = (
        input_layer(3, 8, 8)
        + layer("conv", "Convolution", "data", conv)
        + layer("drop", "Dropout", "conv", "phase: TRAIN", top="conv")
        + layer("pool", "Pooling", "conv", pool)
    )
    assert disagreement(saved(text, tmp_path, ("conv", "pool"))) < TOLERANCE
