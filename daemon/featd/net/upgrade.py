"""Brings a definition of any age to one form: a list of layers of the TEST phase, inputs among them.

The rules are Caffe's own (upgrade_proto.cpp, Net::FilterNet), written anew.
"""

from __future__ import annotations

from typing import Final

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import INPUT, Layer

REFUSED: Final = frozenset(
    {
        "AnnotatedData", "Data", "DetectionEvaluate", "HDF5Data", "HDF5Output", "ImageData", "InfogainLoss",
        "Python", "VideoData", "WindowData",
    }
)  # fmt: skip
"""Layer types that read or write files, or import code. No engine ever sees them."""

_V1_TYPES: Final = {
    "ABSVAL": "AbsVal", "ACCURACY": "Accuracy", "ARGMAX": "ArgMax", "BNLL": "BNLL", "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss", "CONVOLUTION": "Convolution", "DECONVOLUTION": "Deconvolution",
    "DATA": "Data", "DROPOUT": "Dropout", "DUMMY_DATA": "DummyData", "EUCLIDEAN_LOSS": "EuclideanLoss",
    "ELTWISE": "Eltwise", "EXP": "Exp", "FLATTEN": "Flatten", "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output", "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col", "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN",
    "MEMORY_DATA": "MemoryData", "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss", "MVN": "MVN",
    "POOLING": "Pooling", "POWER": "Power", "RELU": "ReLU", "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss", "SILENCE": "Silence", "SLICE": "Slice",
    "SOFTMAX": "Softmax", "SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split", "TANH": "TanH",
    "THRESHOLD": "Threshold", "WINDOW_DATA": "WindowData",
}  # fmt: skip
_V1_NAMES: Final = {number: name for name, number in schema.ENUMS["V1LayerParameter.LayerType"].items()}
_TEST: Final = schema.ENUMS["NetState.Phase"]["TEST"]


def upgrade(net: schema.Message, source: str) -> tuple[Layer, ...]:
    """The layers that run in the TEST phase, in order, with one Input layer per old-style `input` in front.

    Layers keep the index they have in the file. Nothing is refused here: see `refuse`.
    """
    if net.layer and net.layers:
        raise ModelError(f"{source}: mixes `layer` and `layers` (old form): Caffe does not read this either")
    layers = _inputs(net, source)
    if net.layer:
        layers += [
            _current(layer, index) for index, layer in enumerate(net.layer) if _runs(layer, net.state, source)
        ]
    else:
        layers += [
            _v1(layer, index) for index, layer in enumerate(net.layers) if _runs(layer, net.state, source)
        ]
    return tuple(layers)


def refuse(layers: tuple[Layer, ...], source: str) -> None:
    """ModelError if any layer, needed or not, reads files or imports code."""
    for layer in layers:
        if reason := refusal(layer):
            raise ModelError(f"{source}: {reason}")


def refusal(layer: Layer) -> str | None:
    """Why featd refuses a net with this layer, or None."""
    if layer.type not in REFUSED:
        return None
    does = "imports code" if layer.type == "Python" else "reads or writes files"
    return (
        f"layer {layer.name!r} of type {layer.type} {does}, which featd refuses: take the net's deploy.prototxt, "
        "or replace it by an Input layer or remove it"
    )


def _inputs(net: schema.Message, source: str) -> list[Layer]:
    if not net.input:
        return []
    shapes = [list(shape.dim) for shape in net.input_shape]
    dims = list(net.input_dim)
    if dims and not shapes:
        shapes = [dims[at : at + 4] for at in range(0, len(dims), 4)]
    if len(shapes) != len(net.input) or (dims and len(dims) % 4):
        raise ModelError(
            f"{source}: {len(net.input)} `input` need as many `input_shape`, or 4 `input_dim` each"
        )
    layers = []
    for name, shape in zip(net.input, shapes, strict=True):
        param = schema.new("LayerParameter")
        param.name, param.type = name, INPUT
        param.top.append(name)
        param.input_param.shape.add().dim.extend(shape)
        layers.append(Layer(-1, name, INPUT, (), (name,), param))
    return layers


def _current(param: schema.Message, index: int) -> Layer:
    return Layer(index, param.name, param.type, tuple(param.bottom), tuple(param.top), param)


def _v1(old: schema.Message, index: int) -> Layer:
    param = schema.new("LayerParameter")
    # Blocks of the same name hold the same message in both forms; `param` alone changed its meaning.
    known = schema.FIELDS["LayerParameter"]
    for name, spec in schema.FIELDS["V1LayerParameter"].items():
        if name.endswith("_param") and schema.is_message(spec.type) and name in known and old.HasField(name):
            getattr(param, name).CopyFrom(getattr(old, name))
    for shared in old.param:
        param.param.add().name = shared
    kind = _V1_TYPES.get(_V1_NAMES.get(old.type, ""), "NONE")
    return Layer(index, old.name, kind, tuple(old.bottom), tuple(old.top), param)


def _runs(layer: schema.Message, state: schema.Message, source: str) -> bool:
    """Whether a layer stands in the net that pycaffe makes for caffe.TEST (Net::FilterNet)."""
    if layer.include and layer.exclude:
        raise ModelError(f"{source}: layer {layer.name!r}: write either include or exclude")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: schema.Message, state: schema.Message) -> bool:
    # pycaffe sets phase and level whatever the file's `state` says; stages it adds to.
    stages = set(state.stage)
    return not (
        (rule.HasField("phase") and rule.phase != _TEST)
        or (rule.HasField("min_level") and rule.min_level > 0)
        or (rule.HasField("max_level") and rule.max_level < 0)
        or not stages.issuperset(rule.stage)
        or stages.intersection(rule.not_stage)
    )
