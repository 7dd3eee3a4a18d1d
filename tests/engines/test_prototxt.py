"""Our reader of text format against protobuf's own, and Caffe's phases."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from featd.errors import ModelError
from featd.net import gist, prototxt, schema
from featd.net.upgrade import upgrade
from nets import caffenet_prototxt, real_caffe, shared

FORMS = r"""
name: "a\tb" 'c\x41\101' # two strings are one
input: "data"; input_dim: [1, 3, 0x10, 010],
state: < phase: TEST level: 2 stage: 'x' >
layer { name: "é" type: "Power" power_param: { power: 0.5f scale: -1e-3 shift: .25 }
  include { phase: 1 } include: { stage: ["x", "y"] } propagate_down: [true, false, 1, 0, t] }
layer { name: "lrn" lrn_param { norm_region: WITHIN_CHANNEL k: inf alpha: nan beta: -inf } }
"""


@pytest.mark.parametrize(
    "text", [FORMS, gist.prototxt(), caffenet_prototxt()], ids=["forms", "gist", "caffenet"]
)
def test_reads_what_protobuf_reads(text: str) -> None:
    theirs = text_format.Parse(text, schema.new("NetParameter"))
    ours = prototxt.parse(text, "test")
    assert text_format.MessageToString(ours) == text_format.MessageToString(theirs)


@pytest.mark.parametrize("name", ["alexnet_deploy.prototxt", "caffenet_deploy.prototxt"])
def test_reads_published_definitions(name: str) -> None:
    text = shared(name).read_text()
    assert prototxt.parse(text, name) == text_format.Parse(text, schema.new("NetParameter"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('name: "a" name: "b"', 1),
        ("name: a", 1),
        ('\nname "a"', 2),
        ("name: [1, 2]", 1),
        ("input_dim: 4294967296", 1),
        ("input_dim: 1.5", 1),
        ("force_backward: maybe", 1),
        ("layer: 5", 1),
        ('\n\nlayer { name: "x"', 3),
        ("layer { } }", 1),
        ("layer { fancy_param { ] } }", 1),
        ("layer { fancy_param {\na: } }", 2),
        ("layer { fancy_param { a { b: 1 c } } }", 1),
        ("layer { fancy_param { 5 } }", 1),
        ("layer { fancy_param { a: [1, {] } }", 1),
        ("layer { fancy_param { a: 1 > }", 1),
        ('name: "open', 1),
        ("state { state { } }", 1),
    ],
)
def test_errors_name_the_line(text: str, line: int) -> None:
    with pytest.raises(ModelError, match=f"^file, line {line}: "):
        prototxt.parse(text, "file")


def test_our_field_numbers_are_caffes() -> None:
    real_caffe()
    from caffe.proto import caffe_pb2

    # BVLC's and the forks' names of one number; layers that this Caffe lacks.
    ours_only = {
        "round_mode",
        "ceil_mode",
        "clip_param",
        "swish_param",
        "interp_param",
        "shuffle_channel_param",
        "bn_param", "crop_param", "upsample_param", "flip_param", "reorg_param", "selu_param", "unpooling_param",
        "scale_filler", "shift_filler", "bn_mode",
        "upsample_h", "upsample_w", "scale_h", "scale_w", "pad_out_h", "pad_out_w",
    }  # fmt: skip
    lacking = {
        f"{name}Parameter"
        for name in ("Clip", "Swish", "Interp", "ShuffleChannel", "Flip", "Reorg", "SeLU", "Unpooling")
    }
    assert not lacking.intersection(caffe_pb2.DESCRIPTOR.message_types_by_name)
    for message, fields in schema.FIELDS.items():
        if message in lacking:
            continue
        theirs = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name
        for name, spec in fields.items():
            if name not in ours_only:
                assert spec.number == theirs[name].number, (message, name)
                assert spec.repeated == (theirs[name].label == theirs[name].LABEL_REPEATED), (message, name)
        for name, default in ((n, s.default) for n, s in fields.items() if s.default and n not in ours_only):
            theirs_default = getattr(getattr(caffe_pb2, message)(), name)
            assert getattr(schema.new(message), name) == theirs_default, (message, name, default)
    for path, values in schema.ENUMS.items():
        message, _, name = path.partition(".")
        if message in lacking:
            continue
        found = caffe_pb2.DESCRIPTOR.message_types_by_name[message].enum_types_by_name.get(name)
        if found is not None:
            theirs = {value.name: value.number for value in found.values}
            assert values | theirs == values, path
            assert all(number > 1000 for name, number in values.items() if name not in theirs), path


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        ("", True),
        ("include { phase: TEST }", True),
        ("include { phase: TRAIN }", False),
        ("exclude { phase: TRAIN }", True),
        ("exclude { phase: TEST }", False),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ('include { stage: "deploy" }', False),
        ('exclude { not_stage: "deploy" }', False),
        ("include { min_level: 1 }", False),
        ("include { max_level: 0 }", True),
    ],
)
def test_phases(rule: str, runs: bool) -> None:
    net = prototxt.parse(f'layer {{ name: "x" type: "ReLU" {rule} }}', "test")
    assert bool(upgrade(net, "test")) is runs
