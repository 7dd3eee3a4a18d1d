"""Converts a definition of any age to one form: a list of layers of the TEST phase, inputs among them.

The rules are Caffe's own (upgrade_proto.cpp, Net::FilterNet), written again here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from featd.errors import ModelError
from featd.net import schema
from featd.net.graph import INPUT, Layer
from featd.net.old_crop import with_offsets
from featd.net.v0 import from_v0, is_v0

REFUSED: Final = frozenset(
    {
        "AnnotatedData", "Data", "DetectionEvaluate", "HDF5Data", "HDF5Output", "ImageData", "InfogainLoss",
        "Python", "VideoData", "WindowData",
    }
)  # fmt: skip
"""Layer types that read or write files, or import code. No engine gets them."""

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
    "BN": "BN", "CROP": "Crop", "UNPOOLING": "Unpooling", "UPSAMPLE": "Upsample",  # of branches
}  # fmt: skip
_V1_NAMES: Final = {number: name for name, number in schema.ENUMS["V1LayerParameter.LayerType"].items()}
_TEST: Final = schema.ENUMS["NetState.Phase"]["TEST"]


def upgrade(net: schema.Message, source: str) -> tuple[Layer, ...]:
    """The layers that run in the TEST phase, in order, with one Input layer per old-style `input` in front.

    Layers keep the index they have in the file, unless the file is of the form of 2013. Nothing is refused here: see
    `refusal`.
    """
    if net.layer and net.layers:
        raise ModelError(f"{source}: mixes `layer` and `layers` (old form): Caffe does not read this either")
    layers = _inputs(net, source)
    if net.layer:
        layers += [
            _current(layer, index) for index, layer in enumerate(net.layer) if _runs(layer, net.state, source)
        ]
    elif is_v0(net):
        layers += [
            replace(_v1(layer, index), rewritten=True) for index, layer in enumerate(from_v0(net, source))
        ]
    else:
        layers += [
            _v1(layer, index) for index, layer in enumerate(net.layers) if _runs(layer, net.state, source)
        ]
        layers = with_offsets(layers, source)
    return _keyed(_fed(layers, source))


def _fed(layers: Sequence[Layer], source: str) -> list[Layer]:
    """Layers through which a program passes pictures become Input layers: MemoryData, and in a net without another
    input its first DummyData with the shape of a picture (nets written for timing)."""
    made = []
    has_input = any(layer.type in (INPUT, "MemoryData") for layer in layers)
    for layer in layers:
        if layer.type == "MemoryData":
            made += _input_layers(layer, _memory_shapes(layer, source))
        elif layer.type == "DummyData":
            for top in _dummies(layer, source):
                shape = tuple(int(dim) for dim in top.param.dummy_data_param.shape[0].dim)
                if not has_input and len(shape) == 4 and shape[1] in (1, 3):
                    has_input = True
                    made += _input_layers(top, [shape])
                else:
                    made.append(top)
        else:
            made.append(layer)
    return made


def _input_layers(layer: Layer, shapes: Sequence[Sequence[int]]) -> list[Layer]:
    return [
        replace(_input(layer.name, top, shape), index=layer.index, rewritten=True)
        for top, shape in zip(layer.tops, shapes, strict=True)
    ]


def _input(name: str, top: str, shape: Sequence[int]) -> Layer:
    param = schema.new("LayerParameter")
    param.name, param.type = name, INPUT
    param.top.append(top)
    param.input_param.shape.add().dim.extend(shape)
    return Layer(-1, name, INPUT, (), (top,), param)


def _memory_shapes(layer: Layer, source: str) -> list[tuple[int, ...]]:
    param = layer.param.memory_data_param
    if len(layer.tops) != 2 or layer.bottoms:
        raise ModelError(
            f"{source}: {layer} has {len(layer.tops)} tops, the type takes 2: pictures and labels"
        )
    return [(param.batch_size, param.channels, param.height, param.width), (param.batch_size,)]


def _dummies(layer: Layer, source: str) -> list[Layer]:
    """A DummyData layer as one for each of its tops, with one `shape` and one filler."""
    param, count = layer.param.dummy_data_param, len(layer.tops)
    old = [list(getattr(param, name)) for name in ("num", "channels", "height", "width")]
    if any(old):
        fits = not param.shape and all(len(dims) in (1, count) for dims in old)
        each = [dims * count if len(dims) == 1 else dims for dims in old]
        shapes = [list(dims) for dims in zip(*each, strict=False)]
    else:
        shapes = [[int(dim) for dim in shape.dim] for shape in param.shape]
        fits = len(shapes) in (1, count)
        shapes = shapes * count if len(shapes) == 1 else shapes
    fillers = list(param.data_filler)
    if not fits or len(fillers) not in (0, 1, count) or layer.bottoms:
        raise ModelError(
            f"{source}: {layer}: needs no bottom, and one shape and filler for all of its {count} tops or one for each"
        )
    made = []
    for at, (top, shape) in enumerate(zip(layer.tops, shapes, strict=True)):
        one = schema.new("LayerParameter")
        one.name, one.type = layer.name, layer.type
        one.top.append(top)
        one.dummy_data_param.shape.add().dim.extend(shape)
        if fillers:
            one.dummy_data_param.data_filler.add().CopyFrom(fillers[at if len(fillers) > 1 else 0])
        made.append(Layer(layer.index, layer.name, layer.type, (), (top,), one, rewritten=True))
    return made


def _keyed(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    names = {layer.name for layer in layers}
    seen: dict[str, int] = {}
    made = []
    for layer in layers:
        seen[layer.name] = seen.get(layer.name, 0) + 1
        key, count = layer.name, seen[layer.name]
        while count > 1 and key in names:
            key, count = f"{layer.name} ({count})", count + 1
        names.add(key)
        made.append(replace(layer, key=key))
    return tuple(made)


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
    if not shapes:
        shapes = [dims[at : at + 4] for at in range(0, len(dims), 4)]
    if not shapes:
        # Caffe ignores such an `input`: an Input layer makes the blob.
        made = {top for layer in (*net.layer, *net.layers) for top in layer.top}
        fits = made.issuperset(net.input)
    else:
        fits = len(shapes) >= len(net.input) and all(map(shapes.__getitem__, range(len(net.input))))
    if not fits or (not net.input_shape and len(dims) % 4):
        raise ModelError(
            f"{source}: {len(net.input)} `input` need as many `input_shape`, or 4 `input_dim` each"
        )
    return [_input(name, name, shape) for name, shape in zip(net.input, shapes, strict=False)]


def _current(param: schema.Message, index: int) -> Layer:
    if param.type in ("ConvolutionDepthwise", "DepthwiseConvolution"):
        # Branches have it because it was faster; weights and result are those of a Convolution of as many groups.
        made = schema.new("LayerParameter")
        made.CopyFrom(param)
        made.type = "Convolution"
        if param.type == "ConvolutionDepthwise":
            made.convolution_param.group = made.convolution_param.num_output
        return replace(_current(made, index), rewritten=True)
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
    """Whether a layer is in the net that pycaffe makes for caffe.TEST (Net::FilterNet)."""
    if layer.include and layer.exclude:
        raise ModelError(f"{source}: layer {layer.name!r}: write either include or exclude")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: schema.Message, state: schema.Message) -> bool:
    # pycaffe replaces the phase and level of the file's `state`, and adds to its stages.
    stages = set(state.stage)
    return not (
        (rule.HasField("phase") and rule.phase != _TEST)
        or (rule.HasField("min_level") and rule.min_level > 0)
        or (rule.HasField("max_level") and rule.max_level < 0)
        or not stages.issuperset(rule.stage)
        or stages.intersection(rule.not_stage)
    )
