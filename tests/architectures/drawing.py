"""Draws a net layer by layer and writes its definition, in the form of today or in one of the two before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engines.layer_case import written
from nets import layer

CURRENT, V1, V0 = "current", "V1", "V0"
"""`layer { type: "Convolution" }`, `layers { type: CONVOLUTION }` and `layers { layer { type: "conv" } }`."""
_BLOCKS = {
    "BatchNorm": "batch_norm_param", "Deconvolution": "convolution_param", "InnerProduct": "inner_product_param",
    "Normalize": "norm_param", "ShuffleChannel": "shuffle_channel_param",
}  # fmt: skip
_V1_TYPES = {"InnerProduct": "INNER_PRODUCT", "ReLU": "RELU", "TanH": "TANH"}
"""Where upper case alone would not do."""
_V0_TYPES = {"Convolution": "conv", "Pooling": "pool", "InnerProduct": "innerproduct"}
"""Where lower case alone would not do."""
_V0_SETTINGS = {"kernel_size": "kernelsize", "bias_term": "biasterm"}


@dataclass(frozen=True)
class Drawn:
    """One layer."""

    name: str
    kind: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    settings: dict[str, Any]


@dataclass
class Drawing:
    """A net in the making. Each method adds a layer, which reads what the last one made unless `bottom` says
    otherwise, and returns the name of its top. Settings that are not named go to the layer's own block."""

    name: str
    dims: tuple[int, ...] = (3, 224, 224)
    batch: int = 1
    data: str = "data"
    old_input: bool = False
    """`input` and `input_dim` instead of an Input layer."""
    layers: list[Drawn] = field(default_factory=list)
    last: str = ""

    def __post_init__(self) -> None:
        self.last = self.data

    def add(
        self, kind: str, name: str, bottom: str | Sequence[str] = "", top: str = "", **settings: Any
    ) -> str:
        """Any layer of one top; the top has the layer's name if nothing else is said."""
        self.split(kind, name, (top or name,), bottom, **settings)
        return self.last

    def split(
        self, kind: str, name: str, tops: Sequence[str], bottom: str | Sequence[str] = "", **settings: Any
    ) -> None:
        """Any layer of several tops."""
        bottoms = (bottom or self.last,) if isinstance(bottom, str) else tuple(bottom)
        self.layers.append(Drawn(name, kind, bottoms, tuple(tops), settings))
        self.last = tops[0]

    def over(self, kind: str, name: str, **settings: Any) -> str:
        """A layer in place."""
        return self.add(kind, name, self.last, self.last, **settings)

    def conv(self, name: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, **more: Any) -> str:
        """A convolution; `bottom`, `top`, `group`, `dilation`, `bias_term` among `more`."""
        return self._conv("Convolution", name, outputs, kernel, stride, pad, more)

    def deconv(self, name: str, outputs: int, kernel: int, stride: int, pad: int = 0, **more: Any) -> str:
        """A deconvolution, as `conv`."""
        return self._conv("Deconvolution", name, outputs, kernel, stride, pad, more)

    def _conv(
        self, kind: str, name: str, outputs: int, kernel: int, stride: int, pad: int, more: dict[str, Any]
    ) -> str:
        wires = {wire: more.pop(wire) for wire in ("bottom", "top") if wire in more}
        settings = {"num_output": outputs, "kernel_size": kernel, **more}
        if pad:
            settings["pad"] = pad
        if stride != 1:
            settings["stride"] = stride
        return self.add(kind, name, **wires, **settings)

    def fully(self, name: str, outputs: int, bottom: str = "", **settings: Any) -> str:
        """An InnerProduct."""
        return self.add("InnerProduct", name, bottom, num_output=outputs, **settings)

    def relu(self, name: str, **settings: Any) -> str:
        """A ReLU in place."""
        return self.over("ReLU", name, **settings)

    def drop(self, name: str, ratio: float = 0.5) -> str:
        """A Dropout in place."""
        return self.over("Dropout", name, dropout_ratio=ratio)

    def pool(
        self, name: str, kernel: int, stride: int = 1, pad: int = 0, how: str = "MAX", bottom: str = ""
    ) -> str:
        """A pooling."""
        more = {"pad": pad} if pad else {}
        return self.add("Pooling", name, bottom, pool=how, kernel_size=kernel, stride=stride, **more)

    def average(self, name: str, bottom: str = "") -> str:
        """Global average pooling."""
        return self.add("Pooling", name, bottom, pool="AVE", global_pooling=True)

    def lrn(self, name: str, alpha: float = 0.0001, size: int = 5, **settings: Any) -> str:
        """A local response normalization with beta 0.75."""
        return self.add("LRN", name, local_size=size, alpha=alpha, beta=0.75, **settings)

    def norm(self, norm: str, scale: str, **settings: Any) -> str:
        """BatchNorm and Scale in place."""
        self.over("BatchNorm", norm, **settings)
        return self.over("Scale", scale, bias_term=True)

    def sum(self, name: str, *bottoms: str, **settings: Any) -> str:
        """An Eltwise, SUM unless `operation` says otherwise."""
        return self.add("Eltwise", name, bottoms, **settings)

    def concat(self, name: str, *bottoms: str, **settings: Any) -> str:
        return self.add("Concat", name, bottoms, **settings)

    def softmax(self, name: str = "prob", bottom: str = "", **settings: Any) -> str:
        return self.add("Softmax", name, bottom, **settings)

    def text(self, form: str = CURRENT) -> str:
        """The definition."""
        old = form != CURRENT or self.old_input
        head = f'name: "{self.name}"\n'
        if old:
            head += f'input: "{self.data}"\n' + "".join(
                f"input_dim: {dim}\n" for dim in (self.batch, *self.dims)
            )
        else:
            shape = " ".join(f"dim: {dim}" for dim in (self.batch, *self.dims))
            head += layer(self.data, "Input", "", f"input_param {{ shape: {{ {shape} }} }}")
        write = {CURRENT: _current, V1: _v1, V0: _v0}[form]
        return head + "".join(write(one) for one in self.layers)


def _learns(one: Drawn, words: tuple[str, str]) -> str:
    if one.kind not in ("Convolution", "InnerProduct", "Deconvolution"):
        return ""
    return " ".join(words[: 1 + one.settings.get("bias_term", True)])


def _current(one: Drawn) -> str:
    learns = _learns(one, ("param { lr_mult: 1 decay_mult: 1 }", "param { lr_mult: 2 decay_mult: 0 }"))
    return layer(one.name, one.kind, " ".join(one.bottoms), f"{learns} {_block(one)}", " ".join(one.tops))


def _block(one: Drawn) -> str:
    block = _BLOCKS.get(one.kind, f"{one.kind.lower()}_param")
    return f"{block} {{ {written(one.settings)} }}" if one.settings else ""


def _wires(one: Drawn) -> str:
    return " ".join([f'bottom: "{bottom}"' for bottom in one.bottoms] + [f'top: "{top}"' for top in one.tops])


def _v1(one: Drawn) -> str:
    learns = _learns(one, ("blobs_lr: 1 weight_decay: 1", "blobs_lr: 2 weight_decay: 0"))
    kind = _V1_TYPES.get(one.kind, one.kind.upper())
    return f'layers {{ {_wires(one)} name: "{one.name}" type: {kind} {learns} {_block(one)} }}\n'


def _v0(one: Drawn) -> str:
    """Padding is a layer of its own here."""
    settings = {_V0_SETTINGS.get(name, name): value for name, value in one.settings.items()}
    pad, before, wires = settings.pop("pad", 0), "", _wires(one)
    if pad:
        padded, bottom = f"pad {one.name}", f'bottom: "{one.bottoms[0]}"'
        before = (
            f'layers {{ layer {{ name: "{padded}" type: "padding" pad: {pad} }} {bottom} top: "{padded}" }}\n'
        )
        wires = wires.replace(bottom, f'bottom: "{padded}"', 1)
    learns = _learns(one, ("blobs_lr: 1. weight_decay: 1.", "blobs_lr: 2. weight_decay: 0."))
    kind = _V0_TYPES.get(one.kind, one.kind.lower())
    inner = f'name: "{one.name}" type: "{kind}" {written(settings)} {learns}'
    return f"{before}layers {{ layer {{ {inner} }} {wires} }}\n"


@dataclass(frozen=True)
class Published:
    """A net to be compared, in one form."""

    name: str
    draw: Callable[[], Drawing]
    blobs: tuple[str, ...]
    """The features one would take, and the last blob."""
    form: str = CURRENT
    stand_in: Callable[[], Drawing] | None = None
    """The same net out of layers that the Caffe built here has, where it lacks one."""

    @property
    def key(self) -> str:
        """The name, and the form where it is an old one."""
        return self.name if self.form == CURRENT else f"{self.name} {self.form}"


def old_forms(net: Published, *forms: str) -> list[Published]:
    """The net, and the same in older forms."""
    return [net, *(replace(net, form=form) for form in forms)]
