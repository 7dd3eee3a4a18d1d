"""Forms of definitions and weights, of every age, against straight pycaffe; and nets whose images must run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.engines.select import load_engine
from featd.errors import ModelError
from featd.net import prototxt
from featd.net.describe import describe
from featd.net.upgrade import upgrade
from nets import (
    TOLERANCE,
    agree,
    both_engines,
    by_caffe,
    distance,
    input_layer,
    layer,
    load,
    pictures,
    random_weights,
    real_caffe,
    saved,
)

V0_TEXT = """
name: "of 2013"
input: "data" input_dim: 2 input_dim: 3 input_dim: 17 input_dim: 19
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 6 kernelsize: 5 stride: 2 biasterm: false
  weight_filler { type: "gaussian" std: 0.01 } blobs_lr: 1. } bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.0001 beta: 0.7 k: 2 } bottom: "conv1" top: "norm1" }
layers { layer { name: "conv2" type: "conv" num_output: 4 kernelsize: 3 pad: 1 group: 2 } bottom: "norm1" top: "conv2" }
layers { layer { name: "padp" type: "padding" pad: 1 } bottom: "conv2" top: "padp" }
layers { layer { name: "pool" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "padp" top: "pool" }
layers { layer { name: "both" type: "concat" concat_dim: 1 } bottom: "pool" bottom: "pool" top: "both" }
layers { layer { name: "ip" type: "innerproduct" num_output: 5 } bottom: "both" top: "ip" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.4 } bottom: "ip" top: "ip" }
layers { layer { name: "prob" type: "softmax" } bottom: "ip" top: "prob" }
"""
UNUSED_PADDING = 'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "conv2" top: "p" }\n'
V0_BLOBS = ("conv1", "norm1", "conv2", "pool", "ip", "prob")


def test_form_of_2013(tmp_path: Path) -> None:
    agree(saved(V0_TEXT, tmp_path, V0_BLOBS), 3)


def test_weights_of_2013(tmp_path: Path) -> None:
    """Blobs inside the inner `layer`, with 4-D shapes."""
    real_caffe()
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    model = saved(V0_TEXT, tmp_path, V0_BLOBS)
    assert model.weights is not None
    arrays = random_weights(V0_TEXT, model.weights, seed=3)
    old = text_format.Parse(V0_TEXT, caffe_pb2.NetParameter())
    for one in old.layers:
        for array in arrays.get(one.layer.name, []):
            dims = (1,) * (4 - array.ndim) + array.shape
            blob = one.layer.blobs.add(num=dims[0], channels=dims[1], height=dims[2], width=dims[3])
            blob.data.extend(array.ravel().tolist())
    model.weights.write_bytes(old.SerializeToString())
    assert describe(model.net, model.weights).weights.missing == ()  # type: ignore[union-attr]
    agree(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('type: "relu"', 'type: "fancy"'), "unknown type 'fancy'"),
        (('type: "relu"', 'type: "relu" num_output: 3'), "does not take 'num_output'"),
        (('type: "lrn" local_size: 3', 'type: "lrn" group: 3'), "does not take 'group'"),
        (('bottom: "pad1"', 'bottom: "nowhere"'), "reads blob 'nowhere'"),
        (('bottom: "conv1" top: "norm1"', 'bottom: "pad1" top: "norm1"'), "only before conv and pool"),
        (
            ('layers { layer { name: "relu1"', UNUSED_PADDING + 'layers { layer { name: "relu1"'),
            "no layer before it has the top 'conv2'",
        ),
    ],
)
def test_bad_forms_of_2013(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    model = saved(V0_TEXT, tmp_path, V0_BLOBS)
    Path(model.net).write_text(V0_TEXT.replace(*change))
    with pytest.raises(ModelError, match=says):
        load(model)


IP = layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")


def test_input_forms(tmp_path: Path) -> None:
    for form in (
        'input: "data" input_shape { dim: 7 dim: 3 dim: 6 dim: 5 }',
        'input: "data" input_dim: 7 input_dim: 3 input_dim: 6 input_dim: 5',
        'input: "data" input: "im_info" input_shape { dim: 1 dim: 3 dim: 6 dim: 5 } input_shape { dim: 1 dim: 3 }',
        'layer { name: "i" type: "Input" top: "data" top: "b" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 5 } } }',
    ):
        agree(saved(form + "\n" + IP, tmp_path, ("ip", "data")))


def test_dummy_data_as_the_input(tmp_path: Path) -> None:
    """Nets written to be timed. Straight Caffe fills the blob itself: so it is overwritten here before each layer."""
    dummy = (
        'layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param { num: 4 num: 4 channels: 3 '
        "channels: 1 height: 6 height: 1 width: 5 width: 1 data_filler { type: 'gaussian' } } }"
    )
    model = saved(dummy + IP, tmp_path, ("ip",))
    net = load(model)
    assert (net.input_blob, net.input_shape) == ("data", (3, 6, 5))
    plain = load(saved(input_layer(3, 6, 5) + IP, tmp_path, ("ip",)))
    batch = pictures(net, 3)
    want = both_engines(plain)[0].forward(batch)["ip"]
    for engine in both_engines(net):
        assert distance(engine.forward(batch)["ip"], want) < TOLERANCE


def test_memory_data_as_the_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caffe = real_caffe()
    memory = (
        'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 2 channels: 3 '
        "height: 6 width: 5 } }"
    )
    model = saved(memory + IP, tmp_path, ("ip",))
    net = load(model)
    batch = pictures(net, 2)
    theirs = caffe.Net(model.net, caffe.TEST, weights=str(model.weights))
    theirs.set_input_arrays(batch, np.zeros(2, np.float32))
    theirs.forward()
    want = theirs.blobs["ip"].data.reshape(2, -1).copy()
    for engine in both_engines(net):
        assert distance(engine.forward(batch)["ip"], want) < TOLERANCE
    Path(model.net).write_text(memory.replace('name: "m"', 'name: "transform_param"') + IP)
    both_engines(load(model))
    assert not caplog.records
    # Caffe does not apply it to arrays either.
    Path(model.net).write_text(
        memory.replace("memory_data", "transform_param { scale: 0.5 mean_value: 9 } memory_data") + IP
    )
    theirs = caffe.Net(model.net, caffe.TEST, weights=str(model.weights))
    theirs.set_input_arrays(batch, np.zeros(2, np.float32))
    theirs.forward()
    assert distance(theirs.blobs["ip"].data.reshape(2, -1), want) < TOLERANCE
    for engine in both_engines(load(model)):
        assert distance(engine.forward(batch)["ip"], want) < TOLERANCE
    assert "transform_param of the input layer is not used" in caplog.text
    with pytest.raises(ModelError, match="2 inputs"):
        load(
            saved(memory + IP + layer("s", "Scale", "ip label", "scale_param { axis: 0 }"), tmp_path, ("s",))
        )


def test_phase_level_and_stage_as_pycaffe_takes_them(tmp_path: Path) -> None:
    def scaled(name: str, by: float, rule: str) -> str:
        return layer(name, "Power", "data", f"power_param {{ scale: {by} }} {rule}", top="out")

    text = 'state { stage: "deploy" } ' + input_layer(3, 4, 4)
    text += scaled("a", 2, "include { phase: TRAIN }") + scaled("b", 3, 'include { stage: "other" }')
    text += scaled("c", 5, 'include { phase: TEST stage: "deploy" min_level: 0 }')
    text += scaled("d", 7, 'exclude { not_stage: "other" }') + scaled("e", 9, "include { min_level: 1 }")
    agree(saved(text, tmp_path, ("out",)))


def test_repeated_names_and_a_top_of_another_name(tmp_path: Path) -> None:
    """Weights of a repeated name go to its first layer; the second has none, unless it shares them."""
    shared = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 90 }'
    text = input_layer(3, 6, 5) + layer("same", "InnerProduct", "data", shared, top="a")
    text += layer("same", "InnerProduct", "a", shared, top="b") + layer("same", "ReLU", "b", top="c")
    agree(saved(text, tmp_path, ("a", "b", "c")))
    alone = text.replace(shared, "inner_product_param { num_output: 90 }")
    with pytest.raises(ModelError, match=r"no weights for layer 'same \(2\)'"):
        load(saved(alone, tmp_path, ("b",)))
    # The first layer of a name owns it, and its shared arrays, also where no wanted blob needs that layer.
    aside = text.replace('bottom: "a"', 'bottom: "data"')
    agree(saved(aside, tmp_path, ("b",)))
    with pytest.raises(ModelError, match=r"no weights for layer 'same \(2\)'"):
        load(saved(aside.replace(shared, "inner_product_param { num_output: 90 }"), tmp_path, ("b",)))


def test_shared_weights_of_different_shape(tmp_path: Path) -> None:
    def full(name: str, bottom: str, outputs: int, mode: str) -> str:
        rest = f"inner_product_param {{ num_output: {outputs} bias_term: false }}"
        return layer(name, "InnerProduct", bottom, f'param {{ name: "w" {mode} }} {rest}')

    text = input_layer(3, 4, 4) + full("a", "data", 12, "")
    permissive = (
        text
        + layer("r", "Flatten", "data", "flatten_param { axis: 2 }")
        + full("b", "a", 48, "share_mode: PERMISSIVE")
    )
    random_weights(text, tmp_path / "net.caffemodel")
    (tmp_path / "net.prototxt").write_text(permissive)
    model = ModelConfig(
        net=str(tmp_path / "net.prototxt"), weights=tmp_path / "net.caffemodel", blobs=("a", "b")
    )
    agree(model)
    (tmp_path / "net.prototxt").write_text(permissive.replace("share_mode: PERMISSIVE", ""))
    with pytest.raises(ModelError, match="shares an array of another shape"):
        load(model)


def test_recurrent_and_detection_layers_name_the_way_out(tmp_path: Path) -> None:
    kinds = ("LSTM", "RNN", "Recurrent", "PriorBox", "DetectionOutput", "Proposal", "ROIPooling", "Filter")
    for kind in kinds:
        model = saved(input_layer(3, 6, 5) + IP, tmp_path, ("ip",), engine="onnxruntime")
        Path(model.net).write_text(input_layer(3, 6, 5) + IP + layer("x", kind, "ip data"))
        load(model)
        with pytest.raises(ModelError, match=rf"'x' of type {kind}: .*engine = \"caffe\""):
            load_engine(load(model.model_copy(update={"blobs": ("x",)})), "onnxruntime", "cpu", 1)


@pytest.mark.parametrize(
    "settings", ["kernel_size: 2 stride: 2", "kernel_size: 3 stride: 2 pad: 1", "kernel_size: 6"]
)
def test_the_mask_of_max_pooling(tmp_path: Path, settings: str) -> None:
    pool = layer("p", "Pooling", "data", f"pooling_param {{ {settings} }}", top="p mask")
    agree(saved(input_layer(3, 7, 6) + pool, tmp_path, ("p",)))
    agree(saved(input_layer(3, 7, 6) + pool + layer("t", "TanH", "mask"), tmp_path, ("p", "mask", "t")))


def test_the_mask_of_windows_that_hold_nothing(tmp_path: Path) -> None:
    pool = layer("p", "Pooling", "data", "pooling_param { kernel_size: 1 stride: 4 }", top="p mask")
    net = load(saved(input_layer(3, 6, 6) + pool, tmp_path, ("mask",)))
    with pytest.raises(ModelError, match=r"does not make blob 'mask': set engine = \"caffe\""):
        OnnxRuntimeEngine(net, "cpu", 1)


def test_upsample_with_a_mask_as_this_caffe_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It takes the mask and does not use it, which is said."""
    pool = layer("p", "Pooling", "data", "pooling_param { kernel_size: 2 stride: 2 }", top="p mask")
    up = layer("up", "Upsample", "p mask", "upsample_param { scale: 2 }")
    agree(saved(input_layer(3, 6, 6) + pool + up, tmp_path, ("up",)))
    assert "has a mask, which is not used" in caplog.text


@pytest.mark.parametrize(("size", "offset"), [(13, 9), (16, 9)])
def test_the_crop_of_the_old_form_works_out_its_offset(tmp_path: Path, size: int, offset: int) -> None:
    """As FCN's first definitions: real Caffe gets the same net in the current form, with the offset written."""

    def net(of: Callable[[str, str, str, str], str], crop: str) -> str:
        return (
            f'input: "data" input_dim: 1 input_dim: 3 input_dim: {size} input_dim: {size}\n'
            + of("conv", "CONVOLUTION", "data", "convolution_param { num_output: 2 kernel_size: 3 pad: 10 }")
            + of("pool", "POOLING", "conv", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
            + of(
                "up", "DECONVOLUTION", "pool", "convolution_param { num_output: 3 kernel_size: 2 stride: 2 }"
            )
            + of("crop", "CROP", "up data", crop)
        )

    def old(name: str, kind: str, bottoms: str, settings: str) -> str:
        ends = "".join(f' bottom: "{one}"' for one in bottoms.split())
        return f'layers {{ name: "{name}" type: {kind}{ends} top: "{name}" {settings} }}\n'

    def new(name: str, kind: str, bottoms: str, settings: str) -> str:
        return layer(name, kind.capitalize(), bottoms, settings)

    model = saved(net(new, f"crop_param {{ axis: 2 offset: {offset} }}"), tmp_path, ("crop",))
    want = by_caffe(model, pictures(load(model), 2))["crop"]
    Path(model.net).write_text(net(old, ""))
    made = load(model)
    for engine in both_engines(made):
        assert distance(engine.forward(pictures(made, 2))["crop"], want) < TOLERANCE
    Path(model.net).write_text(
        net(old, "").replace(
            'kernel_size: 2 stride: 2 } }\nlayers { name: "crop',
            'kernel_size: 3 stride: 2 } }\nlayers { name: "crop',
        )
    )
    with pytest.raises(ModelError, match=r"'crop' of type Crop: its bottoms lie in no whole distance"):
        load(model)
    Path(model.net).write_text(net(old, "").replace("kernel_size: 2 stride: 2", "kernel_size: 2 stride: 0"))
    with pytest.raises(ModelError, match="stride"):
        load(model)


def test_the_offset_of_fcn_32s() -> None:
    """19, as the later definition of the same net has it."""
    lines = ['input: "data" input_dim: 1 input_dim: 3 input_dim: 500 input_dim: 500']
    last = "data"

    def put(name: str, kind: str, settings: str) -> None:
        nonlocal last
        lines.append(f'layers {{ name: "{name}" type: {kind} bottom: "{last}" top: "{name}" {settings} }}')
        last = name

    for block, count in enumerate((2, 2, 3, 3, 3)):
        for at in range(count):
            pad = 1 if block or at else 100
            put(
                f"c{block}{at}",
                "CONVOLUTION",
                f"convolution_param {{ num_output: 1 kernel_size: 3 pad: {pad} }}",
            )
        put(f"p{block}", "POOLING", "pooling_param { kernel_size: 2 stride: 2 }")
    put("fc6", "CONVOLUTION", "convolution_param { num_output: 1 kernel_size: 7 }")
    put("up", "DECONVOLUTION", "convolution_param { num_output: 1 kernel_size: 64 stride: 32 }")
    lines.append('layers { name: "crop" type: CROP bottom: "up" bottom: "data" top: "crop" }')
    crop = upgrade(prototxt.parse("\n".join(lines), "fcn"), "fcn")[-1]
    assert list(crop.param.crop_param.offset) == [19, 19]
