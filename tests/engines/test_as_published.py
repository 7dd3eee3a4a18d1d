"""Definitions and weights as people publish them: other encodings, parts that no blob needs, settings of branches.

Straight Caffe reads the same file, or the file without what it does not know.
"""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from featd.config import ModelConfig
from featd.engines.select import load_engine
from featd.errors import ModelError
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
    saved,
    write_weights,
)

IP = layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")
TEXT = input_layer(3, 6, 5) + IP


def rewritten(model: ModelConfig, raw: bytes) -> ModelConfig:
    Path(model.net).write_bytes(raw)
    return model


def agrees_with_plain(model: ModelConfig, plain: bytes) -> None:
    """Both engines make of the file what straight Caffe makes of `plain`, which has the same weights."""
    other = Path(model.net).with_name("plain.prototxt")
    other.write_bytes(plain)
    net = load(model)
    batch = pictures(net, 2)
    theirs = by_caffe(model.model_copy(update={"net": str(other)}), batch)
    for engine in both_engines(net):
        ours = engine.forward(batch)
        for blob in model.blobs:
            assert distance(ours[blob], theirs[blob]) < TOLERANCE, (engine.name, blob)


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "latin-1", "utf-8"])
def test_comments_and_names_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """In a comment the second byte of a character may be a backslash or a bracket: so it is of 表 in Shift-JIS."""
    word = {"latin-1": "größe", "gbk": "特征", "shift_jis": "示力"}.get(encoding, "é特")
    comment = "表" if encoding == "shift_jis" else word
    text = f'# {comment} {{\n{TEXT} layer {{ name: "{word[:1]}" type: "TanH" bottom: "ip" top: "out" }} # {word}\n'
    text = text.replace('name: "ip"', f'name: "w-{word[1:]}"')
    model = saved(TEXT, tmp_path, ("ip", "out"))
    rewritten(model, text.encode(encoding))
    assert model.weights is not None
    arrays = random_weights(TEXT, model.weights)["ip"]
    name = f"w-{word[1:]}".encode(encoding)
    write_weights(model.weights, "", {name.decode("utf-8", "surrogateescape"): arrays})
    agree(model)
    hdf5 = model.weights.with_suffix(".h5")
    with h5py.File(hdf5, "w") as file:
        for at, array in enumerate(arrays):
            file[b"data/" + name + b"/%d" % at] = array
    agree(model.model_copy(update={"weights": hdf5}))


def test_a_blob_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    """It is written with the number of each such byte."""
    model = saved(TEXT, tmp_path, ("ip",))
    rewritten(model, TEXT.replace('top: "ip"', 'top: "größe"').encode("latin-1"))
    with pytest.raises(ModelError, match=r"it has: data, gr\\xf6\\xdfe"):
        load(model)
    net = load(model.model_copy(update={"blobs": (r"gr\xf6\xdfe",)}))
    for engine in both_engines(net):
        assert engine.forward(pictures(net, 1))[r"gr\xf6\xdfe"].shape == (1, 4)


def test_a_blank_after_a_minus(tmp_path: Path) -> None:
    power = layer("p", "Power", "ip", "power_param { scale: - 2 shift: -\n# less\n .5e1 }")
    crop = layer("s", "Softmax", "p", "softmax_param { axis: - 1 } include { min_level: - 3 }")
    agree(saved(TEXT + power + crop, tmp_path, ("p", "s")))
    for wrong in ("- - 1", "-", '- "1"', "- x"):
        model = saved(TEXT, tmp_path, ("ip",))
        rewritten(model, (TEXT + f"layer {{ power_param {{ scale: {wrong} }} }}").encode())
        with pytest.raises(ModelError, match="line 3"):
            load(model)


@pytest.mark.parametrize(
    "head",
    [
        'input: "data"',
        'input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 5 } input_shape { dim: 7 } input_dim: 3',
        "input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9",
    ],
)
def test_inputs_as_caffe_counts_them(tmp_path: Path, head: str) -> None:
    """An `input` without a shape is ignored where a layer makes the blob; surplus shapes are ignored."""
    text = head + "\n" + (IP if "input_shape" in head else TEXT)
    agree(saved(text, tmp_path, ("ip",)))


def test_an_input_that_nothing_shapes(tmp_path: Path) -> None:
    model = saved(TEXT, tmp_path, ("ip",))
    rewritten(model, ('input: "data"\n' + IP).encode())
    with pytest.raises(ModelError, match=r"net\.prototxt: 1 `input` need as many `input_shape`"):
        load(model)


def test_layers_in_place_take_no_memory(tmp_path: Path) -> None:
    """25 blobs of 41 million numbers would be more than the limit."""
    text = input_layer(1, 6400, 6400) + layer("big", "Power", "data", "power_param { scale: 0.5 }")
    text += "".join(layer(f"r{at}", "ReLU", "big", top="big") for at in range(30))
    text += "".join(layer(f"f{at}", "Flatten", f"f{at - 1}" if at else "big") for at in range(30))
    text += layer("small", "Slice", "big", "slice_param { axis: 2 slice_point: 1 }", top="small rest")
    load(saved(text, tmp_path, ("small",)))
    copies = "".join(layer(f"t{at}", "TanH", "big") for at in range(26))
    summed = layer("sum", "Eltwise", " ".join(f"t{at}" for at in range(26)))
    with pytest.raises(ModelError, match="1,073,741,824"):
        load(saved(text + copies + summed, tmp_path, ("sum",)))


@pytest.mark.parametrize(
    "strange",
    [
        'layer { name: "x" type: "Python" bottom: "ip" top: "x" python_param { module: "os" layer: "X" } }',
        'layer { name: "x" type: "TanH" bottom: "ip" top: "x" tanh_param { more { a: [1] } c: - inf s: "a" "b" } }',
        'layer { name: "x" type: "Fancy" bottom: "ip" top: "x" fancy_param { a: 1 } }',
        'layer { name: "x" type: "Pooling" bottom: "data" top: "x" pooling_param { pool: BEST kernel_size: 2 } }',
        'layer { name: "x" type: "Data" top: "x" top: "y" data_param { source: "db" backend: ROCKSDB } }',
    ],
)
def test_only_what_is_needed_counts(tmp_path: Path, strange: str) -> None:
    model = saved(TEXT, tmp_path, ("ip",))
    rewritten(model, (TEXT + strange).encode())
    agrees_with_plain(model, TEXT.encode())
    with pytest.raises(ModelError, match=r"net\.prototxt"):
        load_engine(load(model.model_copy(update={"blobs": ("x",)})), "auto", "cpu", 1)


@pytest.mark.parametrize("typo", ['toop: "ip"', "include { phase: FANCY }", "include { fancy: 3 }"])
def test_what_decides_the_need_is_always_read(tmp_path: Path, typo: str) -> None:
    model = saved(TEXT, tmp_path, ("ip",))
    rewritten(model, (TEXT + f'layer {{ name: "x" type: "TanH" bottom: "ip" {typo} }}').encode())
    with pytest.raises(ModelError, match="line 3: "):
        load(model)


def test_an_unneeded_type_of_the_old_form(tmp_path: Path) -> None:
    old = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 6 input_dim: 5\n'
    old += 'layers { name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" inner_product_param { num_output: 4 } }\n'
    model = saved(old, tmp_path, ("ip",))
    rewritten(model, (old + 'layers { name: "x" type: FANCY bottom: "ip" top: "x" }').encode())
    agrees_with_plain(model, old.encode())
    with pytest.raises(ModelError, match="line 3: 'type' cannot be 'FANCY'"):
        load(model.model_copy(update={"blobs": ("x",)}))


@pytest.mark.parametrize(
    "setting",
    [
        "param { lr_mult: 1 wibble: 2 sparsity { a: 1 } }",
        'engine: "MKL2017"',
        "force_backward: true",
        "inner_product_param { weight_filler { type: 'msra' alpha: 0.3 } }",
        "inner_product_param { blob_filler { type: 'xavier' } other_filler < std: - 1 > }",
        "inner_product_param { engine: MKLDNN }",
        "relu_param { engine: CUDNN }",
        "inner_product_param { cudnn_math_override: 0 conv_algos_override: '-1,-1,-1' }",
        "forward_type: FLOAT backward_type: FLOAT16 backward_math: FLOAT16 forward_math: FLOAT16",
    ],
)
def test_settings_of_training_are_not_used(tmp_path: Path, setting: str) -> None:
    text = TEXT.replace(
        "inner_product_param { num_output: 4 }", "SETTING inner_product_param { num_output: 4 }"
    )
    inside = setting.replace("inner_product_param {", "inner_product_param { num_output: 4")
    model = saved(TEXT, tmp_path, ("ip",))
    whole = text.replace("SETTING inner_product_param { num_output: 4 }", inside)
    if "inner_product_param" not in setting:
        whole = text.replace("SETTING", setting)
    of_net = """engine: "MKLDNN" force_backward: true default_forward_type: FLOAT16 default_backward_math: FLOAT
        global_grad_scale: 1000.0 global_grad_scale_adaptive: true reduce_buckets: 6 bn_stats_batch_size: 32
        compile_net_state { bn_scale_remove: false } default_conv_algos_override: "-1,-1,-1" """
    rewritten(model, (of_net + whole).encode())
    agrees_with_plain(model, TEXT.encode())


@pytest.mark.parametrize(
    ("of_net", "of_layer", "says"),
    [
        ("default_forward_math: FLOAT16", "", "default_forward_math: FLOAT16"),
        ("", "forward_type: FLOAT16 backward_type: FLOAT", "forward_type: FLOAT16"),
        ("default_forward_type: FLOAT", "forward_math: FLOAT backward_math: FLOAT16", ""),
    ],
)
def test_another_precision_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, of_net: str, of_layer: str, says: str
) -> None:
    caplog.set_level(logging.WARNING, "featd.engine")
    model = saved(TEXT, tmp_path, ("ip",))
    unneeded = layer("x", "TanH", "ip").replace("type:", "forward_type: FLOAT16 type:")
    rewritten(
        model, (f"{of_net} " + TEXT.replace("inner_product", f"{of_layer} inner_product") + unneeded).encode()
    )
    agrees_with_plain(model, TEXT.encode())
    found = {getattr(record, "fields", record.__dict__).get("setting") for record in caplog.records}
    assert found == ({says} if says else set())


@pytest.mark.parametrize(
    "block", ["quantize: true", "default_backwards_gain: 2", "inptu: 'data'", "layr { }"]
)
def test_an_unknown_setting_of_the_net_is_an_error(tmp_path: Path, block: str) -> None:
    model = rewritten(saved(TEXT, tmp_path, ("ip",)), (TEXT + block).encode())
    with pytest.raises(ModelError, match=r"unknown field .* in a net"):
        load(model)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "utf-32-be", "utf-8-sig"])
def test_a_definition_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    """As Notepad saves "Unicode"; the mark at the start says which."""
    model = saved(TEXT, tmp_path, ("ip",))
    mark = "\ufeff" if encoding.endswith("-be") else ""
    rewritten(model, (mark + TEXT + "# \u5199\u771f").encode(encoding))
    agrees_with_plain(model, TEXT.encode())


def test_a_definition_in_another_encoding_without_a_mark(tmp_path: Path) -> None:
    model = rewritten(saved(TEXT, tmp_path, ("ip",)), TEXT.encode("utf-16-le"))
    with pytest.raises(
        ModelError, match=r"net\.prototxt: UTF-16LE without a byte order mark: save it as UTF-8"
    ):
        load(model)
    rewritten(model, TEXT.encode("utf-16")[:-1])
    with pytest.raises(ModelError, match="its byte order mark says UTF-16, but it is not"):
        load(model)


def test_an_unknown_block_of_a_known_type(tmp_path: Path) -> None:
    """It may change the vectors: no engine skips it without a word."""
    model = saved(TEXT, tmp_path, ("ip",))
    rewritten(model, TEXT.replace("inner_product", "quantization_param { bits: 8 } inner_product").encode())
    net = load(model)
    for engine in ("caffe", "onnxruntime", "auto"):
        with pytest.raises(ModelError, match=r"net\.prototxt: .*quantization_param"):
            load_engine(net, engine, "cpu", 1)
    # Blocks of Caffe's own for other types have no effect.
    agree(
        rewritten(
            model, TEXT.replace("inner_product", "hinge_loss_param { norm: L2 } inner_product").encode()
        )
    )


def test_a_name_with_a_quote_and_a_minus(tmp_path: Path) -> None:
    model = saved(TEXT.replace('name: "ip"', "name: 'i- \\\\ \"p'"), tmp_path, ("ip",))
    agree(model)
    assert np.isfinite(load(model).weights['i- \\ "p'][0].array()).all()


UP = "num_output: 3 group: 3 kernel_size: 4 stride: 2 bias_term: false"
LAYERS_FILLED = {
    "Scale": layer("x", "Scale", "data", "scale_param { bias_term: true filler { value: 0.017 } }"),
    "Scale of two": layer(
        "x", "Scale", "data data", "scale_param { axis: 0 bias_term: true bias_filler { value: 3 } }"
    ),
    "Bias": layer("x", "Bias", "data", "bias_param { filler { type: 'constant' value: -2 } }"),
    "PReLU": layer("x", "PReLU", "data", "prelu_param { filler { value: 0.3 } }"),
    "Normalize": layer(
        "x", "Normalize", "data", "norm_param { scale_filler { type: 'constant' value: 20 } }"
    ),
    "Deconvolution": layer(
        "x", "Deconvolution", "data", f"convolution_param {{ {UP} weight_filler {{ type: 'bilinear' }} }}"
    ),
    "odd": layer(
        "x",
        "Convolution",
        "data",
        "convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: 'bilinear' } bias_filler { value: 7 }}",
    ),
    "InnerProduct": layer(
        "x", "InnerProduct", "data", "inner_product_param { num_output: 2 weight_filler { value: 0.1 } }"
    ),
    "shared": layer("w", "Scale", "data", 'param { name: "s" } scale_param { filler { value: 5 } }')
    + layer("x", "Scale", "w", 'param { name: "s" } scale_param { filler { value: 6 } }'),
}


@pytest.mark.parametrize("what", LAYERS_FILLED)
def test_what_caffe_fills_by_itself(tmp_path: Path, what: str) -> None:
    model = saved(TEXT, tmp_path, ("ip", "x"))
    rewritten(model, (TEXT + LAYERS_FILLED[what]).encode())
    net = load(model)
    assert net.filled == (("w",) if what == "shared" else ("x",))
    agree(model, alone=what in ("Normalize", "Scale of two"))


@pytest.mark.parametrize(
    "settings",
    [
        "num_output: 2 kernel_size: 3 weight_filler { type: 'xavier' } bias_filler { value: 1 }",
        "num_output: 2 kernel_size: 3 bias_filler { value: 1 }",
        "num_output: 2 kernel_size: 3",
        "num_output: 2 kernel_h: 3 kernel_w: 2 weight_filler { type: 'bilinear' }",
        "num_output: 2 kernel_size: 3 weight_filler { value: nan }",
    ],
)
def test_what_is_random_or_not_said_is_of_another_net(tmp_path: Path, settings: str) -> None:
    model = saved(TEXT, tmp_path, ("x",))
    rewritten(
        model, (TEXT + layer("x", "Convolution", "data", f"convolution_param {{ {settings} }}")).encode()
    )
    with pytest.raises(ModelError, match="no weights for layer 'x'"):
        load(model)


def test_a_layer_that_the_weights_name_is_not_filled(tmp_path: Path) -> None:
    """Caffe aborts where the file has the layer with another number of arrays."""
    scale = layer("x", "Scale", "data", "scale_param { filler { value: 2 } }")
    model = saved(TEXT + scale, tmp_path, ("x",))
    write_weights(tmp_path / "net.caffemodel", "", {"x": []})
    with pytest.raises(ModelError, match="no weights for layer 'x'"):
        load(model)
