"""What is wrong with a net or its weights is said, with the way out: never a crash, never a wrong vector."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.engines.select import load_engine, runnable
from featd.errors import ConfigError, ModelError
from featd.net import caffemodel
from featd.net.describe import describe
from featd.preprocess.mean_file import read_mean
from nets import caffenet_prototxt, input_layer, layer, load, random_weights, real_caffe, saved, write_weights

SMALL = input_layer(3, 8, 8) + layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")


def test_identity_is_the_bytes(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    first = load(model).identity
    assert first == load(model).identity
    assert set(first) == {"net", "weights"}
    Path(model.net).write_text(SMALL + "# a comment")
    assert load(model).identity["net"] != first["net"]
    random_weights(SMALL, tmp_path / "net.caffemodel", seed=1)
    assert load(model).identity["weights"] != first["weights"]


def test_defaults_of_a_file_net(tmp_path: Path) -> None:
    defaults = load(saved(SMALL, tmp_path, ("ip",))).preprocess
    assert (defaults.size, defaults.channels, defaults.scale) == ((256, 256), "bgr", 1.0)
    assert defaults.mean == (104.0, 117.0, 123.0)
    gray = load(saved(SMALL.replace("dim: 3", "dim: 1"), tmp_path, ("ip",))).preprocess
    assert (gray.channels, gray.mean) == ("gray", (0.0,))


def test_wrong_blob_lists_the_right_ones_in_order(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no blob 'fc9'; it has: data, conv1, pool1, norm1, conv2"):
        load(saved(caffenet_prototxt(67), tmp_path, ("fc9",)))


def test_global_pooling_of_a_large_blob(tmp_path: Path) -> None:
    """512 x 512 x 512, half of what a blob may hold: nothing is padded."""
    text = input_layer(3, 512, 512) + layer(
        "c", "Convolution", "data", "convolution_param { num_output: 512 kernel_size: 1 }"
    )
    text += layer("p", "Pooling", "c", "pooling_param { pool: AVE global_pooling: true }")
    assert load(saved(text, tmp_path, ("p",))).blobs == {"p": 512}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("garbage", "line 1"),
        ("\x00\x01\x02", "line 1: cannot read"),
        ("", "no layers"),
        ('net: "train.prototxt"\nbase_lr: 0.1', "line 1: unknown field 'net' in a net: this is a solver"),
        ("base_lr: 0.1", "line 1: unknown field 'base_lr' in a net: this is a solver"),
        (
            "layers {\n type: CONVOLUTOIN }",
            "line 2: 'type' cannot be 'CONVOLUTOIN': did you mean CONVOLUTION?",
        ),
        ("inptu_dim: 3", "line 1: unknown field 'inptu_dim' in a net"),
        ('layer {\n name: "x"\n type: "ReLU"', "line 3"),
        ('layer {\n name: "x"\n foo: 3 }', "line 3: unknown field 'foo'"),
        ("layer {\n convolution_param {\n knl: 3 } }", "line 3: unknown field 'knl' in ConvolutionParameter"),
        (
            "layer {\n pooling_param {\n pool: BEST } }",
            "line 3: 'pool' cannot be 'BEST': it is one of MAX, AVE",
        ),
        ("layer {\n convolution_param { num_output: -1 } }", "line 2: 'num_output'"),
        ("layer " + "{ x_param " * 100, "line 1"),
    ],
)
def test_bad_definitions(tmp_path: Path, text: str, says: str) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    Path(model.net).write_text(text)
    with pytest.raises(ModelError) as caught:
        load(model)
    assert says in str(caught.value)
    assert model.net in str(caught.value)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("InerProduct", "InnerProduct"), ("innerproduct", "InnerProduct"), ("Pyhton", "Python")],
)
def test_a_mistyped_type_gets_the_nearest_name(tmp_path: Path, typo: str, meant: str) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    Path(model.net).write_text(SMALL.replace("InnerProduct", typo))
    for engine in ("caffe", "onnxruntime"):
        with pytest.raises(ModelError, match=rf"layer 'ip' of type {typo}: .*did you mean {meant}\?"):
            load_engine(load(model), engine, "cpu", 1)
    assert f"did you mean {meant}?" in runnable(describe(model.net))[1]


def test_a_type_of_its_own_is_no_typo(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    Path(model.net).write_text(SMALL.replace("InnerProduct", "MyOwn"))
    with pytest.raises(ModelError, match="does not run this type:"):
        load_engine(load(model), "onnxruntime", "cpu", 1)


def test_missing_files(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    with pytest.raises(ModelError, match=r"gone\.prototxt: cannot read.*No such file.*check the path"):
        load(model.model_copy(update={"net": str(tmp_path / "gone.prototxt")}))
    with pytest.raises(ModelError, match=r"gone\.caffemodel: cannot read.*No such file.*check the path"):
        load(model.model_copy(update={"weights": tmp_path / "gone.caffemodel"}))
    with pytest.raises(ModelError, match="belongs to `weights`"):
        load(model.model_copy(update={"net": str(model.weights)}))
    for start in ("", "# a comment\n", "\n", "name: 'net' "):
        (tmp_path / "other.prototxt").write_text(start + SMALL)
        with pytest.raises(ModelError, match=r"other\.prototxt: not weights but a net definition.*`net`"):
            load(model.model_copy(update={"weights": tmp_path / "other.prototxt"}))
    (tmp_path / "torn.caffemodel").write_bytes(model.weights.read_bytes()[:-9] if model.weights else b"")
    with pytest.raises(ModelError, match=r"torn\.caffemodel: not a whole \.caffemodel"):
        load(model.model_copy(update={"weights": tmp_path / "torn.caffemodel"}))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO would be waited for, a device be read without end."""
    model = saved(SMALL, tmp_path, ("ip",))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        for key in ("net", "weights"):
            with pytest.raises(ModelError, match="not a regular file"):
                load(model.model_copy(update={key: str(path)}))


@pytest.mark.parametrize("kind", ["Python", "Data", "ImageData", "HDF5Data", "HDF5Output", "WindowData"])
def test_layers_that_reach_outside_are_refused(tmp_path: Path, kind: str) -> None:
    """Where a wanted blob needs them; elsewhere no engine sees them."""
    text = SMALL + layer("evil", kind, "ip", 'python_param { module: "os" layer: "L" }', "x")
    model = saved(text, tmp_path, ("ip",))
    with pytest.raises(ModelError, match=f"'evil' of type {kind} .*refuses"):
        load(model.model_copy(update={"blobs": ("x",)}))
    load_engine(load(model), "auto", "cpu", 1).close()


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (layer("a", "ReLU", "nowhere"), "'a' of type ReLU reads blob 'nowhere'"),
        (layer("a", "ReLU", "data") + layer("b", "ReLU", "data", top="a"), "'b' of type ReLU makes blob 'a'"),
        (
            layer("a", "InnerProduct", "data", "inner_product_param { num_output: 2 axis: 4 }"),
            "axis 4 is out of range",
        ),
        (
            layer("a", "Convolution", "data", "convolution_param { num_output: 2 kernel_size: 9 }"),
            "larger than",
        ),
        (
            layer("a", "Convolution", "data", "convolution_param { num_output: 2 }"),
            "kernel_size is given 0 times",
        ),
        (
            layer("a", "Convolution", "data", "convolution_param { num_output: 2 kernel_size: 1 group: 2 }"),
            "group 2",
        ),
        (layer("a", "DummyData", ""), "one shape and filler"),
        (layer("a", "ReLU", "data ip"), "has 2 bottoms, the type takes 1"),
        (layer("a", "Eltwise", "data"), "has 1 bottoms, the type takes at least 2"),
        (
            layer("p", "Sigmoid", "data", top="a") + layer("q", "Flatten", "a", top="a"),
            "cannot work in place",
        ),
        (
            layer("p", "Sigmoid", "data", top="a") + layer("q", "Eltwise", "a data", top="a"),
            "loses its first bottom",
        ),
        (
            layer("a", "ReLU", "data", "include { phase: TEST } exclude { phase: TRAIN }"),
            "either include or exclude",
        ),
        (
            layer("a", "Convolution", "data", "convolution_param { num_output: 99999999 kernel_size: 1 }"),
            "268,435,456",
        ),
    ],
)
def test_nets_that_do_not_fit(tmp_path: Path, layers: str, says: str) -> None:
    model = saved(SMALL, tmp_path, ("a",))
    Path(model.net).write_text(SMALL + layers)
    with pytest.raises(ModelError) as caught:
        load(model)
    assert says in str(caught.value)


def test_two_inputs(tmp_path: Path) -> None:
    text = SMALL + layer("data2", "Input", "", "input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } }")
    text += layer("sum", "Eltwise", "data data2")
    load(saved(text, tmp_path, ("ip",)))
    with pytest.raises(ModelError, match=r"2 inputs \(data, data2\)"):
        load(saved(text, tmp_path, ("sum",)))


def test_weights_of_another_net(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    other = SMALL.replace("num_output: 4", "num_output: 5")
    random_weights(other, tmp_path / "net.caffemodel")
    with pytest.raises(
        ModelError, match=r"'ip' of type InnerProduct: weight array 0 has shape 5x192, .* needs 4x192"
    ):
        load(model)
    random_weights(
        SMALL.replace("num_output: 4", "num_output: 4 bias_term: false"), tmp_path / "net.caffemodel"
    )
    with pytest.raises(ModelError, match="needs 2 weight arrays, the file holds 1"):
        load(model)
    random_weights(SMALL.replace('name: "ip"', 'name: "ip2"'), tmp_path / "net.caffemodel")
    with pytest.raises(ModelError, match=r"no weights for layer 'ip'"):
        load(model)


def test_a_layer_that_nothing_lowers(tmp_path: Path) -> None:
    unknown = layer("strange", "FancyLayer", "data", "fancy_param { a: 1 b { c: [1, 2] } }")
    after = layer("after", "ReLU", "strange")
    model = saved(SMALL + unknown + after, tmp_path, ("ip", "after"))
    with pytest.raises(ModelError, match=r"'strange' of type FancyLayer.*engine = \"caffe\""):
        load_engine(load(model), "onnxruntime", "cpu", 1)
    net = load(model)
    assert net.blobs == {"ip": 4, "after": 0}
    with pytest.raises(ModelError, match="'strange' of type FancyLayer"):
        OnnxRuntimeEngine(net, "cpu", 1)
    # Not needed, not in the way.
    load_engine(load(model.model_copy(update={"blobs": ("ip",)})), "onnxruntime", "cpu", 1).close()


def test_every_cut_of_the_weights_is_an_error(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    assert model.weights is not None
    raw = model.weights.read_bytes()
    for size in [*range(60), *range(60, len(raw), 97), len(raw) - 1]:
        model.weights.write_bytes(raw[:size])
        with pytest.raises(ModelError) as caught:
            load(model)
        assert str(model.weights) in str(caught.value)
    assert "1 bytes too early (truncated)" in str(caught.value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_weights_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.caffemodel"
    random_weights(
        input_layer(1, 2, 2) + layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 2 }"),
        path,
    )
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        caffemodel.read_weights(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_noise_is_no_weights(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.caffemodel"
    path.write_bytes(noise)
    try:
        caffemodel.read_weights(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_a_mean_file(tmp_path: Path) -> None:
    from featd.net import schema

    blob = schema.new("BlobProto")
    blob.num, blob.channels, blob.height, blob.width = 1, 3, 1, 2
    blob.data.extend(range(6))
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(blob.SerializeToString())
    assert caffemodel.parse_binaryproto(path.read_bytes()).tolist() == [[[[0, 1]], [[2, 3]], [[4, 5]]]]
    path.write_bytes(blob.SerializeToString()[:-3])
    with pytest.raises(ModelError, match="not a whole"):
        caffemodel.parse_binaryproto(path.read_bytes())


def test_a_definition_may_be_huge_but_not_that_huge(tmp_path: Path) -> None:
    path = tmp_path / "huge.prototxt"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match="too large"):
        load(ModelConfig(net=str(path), weights=path, blobs=("x",)))


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for key in ("net", "weights"):
        model = saved(SMALL, tmp_path, ("ip",))
        path = Path(str(getattr(model, key)))
        path.write_bytes(pointer)
        with pytest.raises(ModelError, match=f"{path.name}: cannot read .* Git LFS pointer.*git lfs pull"):
            load(model)
    (tmp_path / "mean.npy").write_bytes(pointer)
    with pytest.raises(ConfigError, match=r"mean\.npy.*Git LFS pointer"):
        read_mean(tmp_path / "mean.npy")


def test_nvidias_batch_norm_is_named(tmp_path: Path) -> None:
    text = SMALL + layer("bn", "BatchNorm", "data")
    model = saved(text, tmp_path, ("bn",))
    arrays = [np.ones((1, 3, 1, 1), np.float32)] * 5
    write_weights(tmp_path / "net.caffemodel", "", {"bn": arrays})
    with pytest.raises(ModelError, match=r"net\.caffemodel: .*'bn'.*5 arrays.*NVIDIA.*Scale"):
        load(model)
    Path(model.net).write_text(
        SMALL + layer("bn", "BatchNorm", "data", "batch_norm_param { scale_bias: true }")
    )
    with pytest.raises(ModelError, match=r"line 3: .*'scale_bias'.*NVIDIA"):
        load(model)


def test_every_error_of_a_layer_names_the_file(tmp_path: Path) -> None:
    model = saved(SMALL, tmp_path, ("ip",))
    Path(model.net).write_text(SMALL.replace("num_output: 4", "num_output: 4 axis: 9"))
    with pytest.raises(ModelError, match=r"^/.*net\.prototxt: layer 'ip'.*axis 9 is out of range"):
        load(model)
    flat = layer("f", "Flatten", "data") + layer(
        "c", "Convolution", "f", "convolution_param { num_output: 1 }"
    )
    with pytest.raises(ModelError, match=r"^/.*net\.prototxt: layer 'c'.*a convolution along axis 1"):
        load(saved(input_layer(3, 8, 8) + flat, tmp_path, ("c",)))


def test_stages_that_are_left_out_are_named(tmp_path: Path) -> None:
    """As DIGITS writes its nets."""
    stage = 'include { stage: "deploy" }'
    text = SMALL.replace("input_param", f"{stage} input_param") + layer("prob", "Softmax", "ip", stage)
    model = saved(SMALL, tmp_path, ("ip",))
    Path(model.net).write_text(text)
    with pytest.raises(ModelError, match=r"reads blob 'data'.*stages deploy.*state { stage: \"deploy\" }"):
        load(model)
    Path(model.net).write_text('state { stage: "deploy" } ' + text)
    load(model)
    Path(model.net).write_text(SMALL + layer("prob", "Softmax", "ip", stage))
    with pytest.raises(ModelError, match=r"no blob 'prob'.*stages deploy"):
        load(model.model_copy(update={"blobs": ("prob",)}))


def test_a_blob_whose_size_varies_is_a_configuration_error(tmp_path: Path) -> None:
    """Filter keeps the images that a selector picks: here none."""
    real_caffe()
    select = layer("mean", "Reduction", "data", "reduction_param { axis: 1 operation: MEAN }")
    select += layer("picked", "Threshold", "mean") + layer("some", "Filter", "data picked")
    net = load(saved(input_layer(3, 8, 8) + select, tmp_path, ("some",)))
    engine = load_engine(net, "caffe", "cpu", 1)
    picture = np.ones((1, 3, 8, 8), np.float32)
    assert engine.forward(picture)["some"].shape == (1, 192)
    with pytest.raises(ModelError, match=r"'some' has .* its size varies from image to image"):
        engine.forward(-picture)
