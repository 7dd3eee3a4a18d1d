"""The form of 2013, `layers { layer { name: ... type: "conv" } }`, converted to the next form (V1).

The rules are Caffe's own (UpgradeV0Net in upgrade_proto.cpp). Padding was a layer then; it becomes a
setting of the convolution or pooling after it.
"""

from __future__ import annotations

from typing import Final

from featd.errors import ModelError
from featd.net import schema

_TYPES: Final = {
    "accuracy": "ACCURACY", "bnll": "BNLL", "concat": "CONCAT", "conv": "CONVOLUTION", "data": "DATA",
    "dropout": "DROPOUT", "euclidean_loss": "EUCLIDEAN_LOSS", "flatten": "FLATTEN", "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT", "im2col": "IM2COL", "images": "IMAGE_DATA", "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT", "lrn": "LRN", "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING", "relu": "RELU", "sigmoid": "SIGMOID", "softmax": "SOFTMAX", "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT", "tanh": "TANH", "window_data": "WINDOW_DATA",
}  # fmt: skip
_CONV: Final = "convolution_param"
_FULL: Final = "inner_product_param"
_POOL: Final = "pooling_param"
_SETTINGS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "num_output": {"conv": (_CONV, "num_output"), "innerproduct": (_FULL, "num_output")},
    "biasterm": {"conv": (_CONV, "bias_term"), "innerproduct": (_FULL, "bias_term")},
    "weight_filler": {"conv": (_CONV, "weight_filler"), "innerproduct": (_FULL, "weight_filler")},
    "bias_filler": {"conv": (_CONV, "bias_filler"), "innerproduct": (_FULL, "bias_filler")},
    "pad": {"conv": (_CONV, "pad"), "pool": (_POOL, "pad")},
    "kernelsize": {"conv": (_CONV, "kernel_size"), "pool": (_POOL, "kernel_size")},
    "group": {"conv": (_CONV, "group")},
    "stride": {"conv": (_CONV, "stride"), "pool": (_POOL, "stride")},
    "pool": {"pool": (_POOL, "pool")},
    "dropout_ratio": {"dropout": ("dropout_param", "dropout_ratio")},
    "local_size": {"lrn": ("lrn_param", "local_size")},
    "alpha": {"lrn": ("lrn_param", "alpha")},
    "beta": {"lrn": ("lrn_param", "beta")},
    "k": {"lrn": ("lrn_param", "k")},
    "concat_dim": {"concat": ("concat_param", "concat_dim")},
}
"""Old setting -> layer type -> (block, name) of the setting in V1."""
_DROPPED: Final = frozenset(
    {
        "name", "type", "source", "scale", "meanfile", "batchsize", "cropsize", "mirror", "blobs_lr", "weight_decay",
        "rand_skip", "det_fg_threshold", "det_bg_threshold", "det_fg_fraction", "det_context_pad", "det_crop_mode",
        "new_num", "new_channels", "new_height", "new_width", "shuffle_images",
    }
)  # fmt: skip
"""Settings of training and of layers that read files, which featd refuses by their type."""


def is_v0(net: schema.Message) -> bool:
    """Caffe's rule: where one layer has the old form, all have."""
    return any(layer.HasField("layer") for layer in net.layers)


def from_v0(net: schema.Message, source: str) -> list[schema.Message]:
    """The net's `layers` as V1 messages. ModelError where Caffe would not read them either."""
    made: list[schema.Message] = []
    padded: dict[str, tuple[str, int]] = {}
    known = set(net.input)
    for index, old in enumerate(net.layers):
        kind = old.layer.type
        if kind == "padding":
            if len(old.bottom) != 1 or len(old.top) != 1:
                raise ModelError(f"{source}: padding layer {old.layer.name!r} needs one bottom and one top")
            if old.bottom[0] not in known:  # of other layers it is seen later, but this one will be gone
                raise ModelError(
                    f"{source}: padding layer {old.layer.name!r}: no layer before it has the top {old.bottom[0]!r}"
                )
            known.add(old.top[0])
            padded[old.top[0]] = (old.bottom[0], old.layer.pad)
            continue
        layer = _layer(old, index, source)
        for at, bottom in enumerate(old.bottom):
            if bottom not in padded:
                continue
            if kind not in ("conv", "pool") or len(old.bottom) != 1:
                raise ModelError(
                    f"{source}: layer {old.layer.name!r}: a padding layer may come only before conv and pool"
                )
            layer.bottom[at], pad = padded[bottom]
            _put(layer, *_SETTINGS["pad"][kind], pad)
        known.update(old.top)
        for top in old.top:
            padded.pop(top, None)
        made.append(layer)
    return made


def _layer(old: schema.Message, index: int, source: str) -> schema.Message:
    if old.layer.type not in _TYPES:
        raise ModelError(
            f"{source}: layer {old.layer.name or index!r} of the old form has unknown type {old.layer.type!r}"
        )
    new = schema.new("V1LayerParameter")
    new.name = old.layer.name
    new.type = schema.ENUMS["V1LayerParameter.LayerType"][_TYPES[old.layer.type]]
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    for field, value in old.layer.ListFields():
        if field.name in _DROPPED:
            continue
        place = _SETTINGS.get(field.name, {}).get(old.layer.type)
        if place is None:
            raise ModelError(
                f"{source}: layer {old.layer.name!r} of type {old.layer.type} does not take {field.name!r}"
            )
        _put(new, *place, value)
    return new


def _put(layer: schema.Message, block: str, name: str, value: object) -> None:
    below = getattr(layer, block)
    spec = schema.FIELDS[_block_type(block)][name]
    if schema.is_message(spec.type):
        getattr(below, name).CopyFrom(value)
    elif spec.repeated:
        del getattr(below, name)[:]
        getattr(below, name).append(value)
    else:
        setattr(below, name, value)


def _block_type(block: str) -> str:
    return schema.FIELDS["V1LayerParameter"][block].type
