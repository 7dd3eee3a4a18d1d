"""A loaded net: everything an engine needs, and everything that decides its vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from featd.net.caffemodel import StoredLayer
from featd.net.graph import Shape, Step
from featd.net.weights import Weight


@dataclass(frozen=True, slots=True)
class PreprocessDefaults:
    """How pictures are prepared for a net where [preprocess] does not say it."""

    size: tuple[int, int]
    """(height, width) to resize to, before the centre crop to the net's input."""
    channels: str
    """`bgr`, `bgra`, `gray` or `gray_alpha`."""
    mean: tuple[float, ...]
    """Subtracted per channel, in the order of `channels`, from pixels 0..255."""
    scale: float
    """Multiplied after the mean is subtracted."""
    std: tuple[float, ...] = ()
    """Divided by afterwards, per channel; empty: nothing is."""


MOST_CHANNELS: Final = 4
"""Of a picture: colours and alpha."""
CAFFE_SIZE: Final = (256, 256)
CAFFE_MEAN_BGR: Final = (104.0, 117.0, 123.0)
"""ImageNet's mean per channel, rounded, as the published Caffe models state it."""


def caffe_defaults(input_shape: tuple[int, int, int]) -> PreprocessDefaults:
    """What BVLC's models expect: 256 x 256 before the crop, BGR, ImageNet's mean, 0..255."""
    channels, height, width = input_shape
    size = (max(CAFFE_SIZE[0], height), max(CAFFE_SIZE[1], width))
    if channels == 3:
        return PreprocessDefaults(size, "bgr", CAFFE_MEAN_BGR, 1.0)
    return PreprocessDefaults(size, {2: "gray_alpha", 4: "bgra"}.get(channels, "gray"), (0.0,), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """A net cut down to what its wanted blobs need. Made by `featd.net.load.load_net`."""

    name: str
    source: str
    """Path of the definition, or the name of a built-in net."""
    blobs: dict[str, int]
    """Wanted blob -> flattened size, in the order asked for. 0: it comes from a layer that featd does not know,
    and only the engine can tell."""
    input_shape: tuple[int, int, int]
    """(channels, height, width)."""
    identity: dict[str, str]
    """What decides the vectors: hashes of the bytes read, or the revision of a built-in recipe."""
    preprocess: PreprocessDefaults
    input_blob: str
    layers: tuple[Step, ...]
    """The steps the wanted blobs need, in order, inputs among them."""
    values: dict[str, int]
    """Wanted blob -> the value (see featd.net.graph) it holds at the end."""
    shapes: dict[str, Shape | None]
    """Blob -> shape with batch 1."""
    weights: Mapping[str, tuple[Weight, ...]]
    """By the layers' keys."""
    filled: tuple[str, ...]
    """Keys of layers whose weights come from their fillers, because the file holds none."""
    unused_weights: tuple[str, ...]
    other_weights: Mapping[str, StoredLayer]
    """The file's arrays for layers of types that featd does not know; by the layers' keys, unchecked."""
    texts: tuple[str, ...]
    blocks: Mapping[int, str]
    precisions: Mapping[int, str]
    """All three by the layers' index: see featd.net.prototxt.Definition."""
    old_form: bool
    """Whether the layers in the file are `layers`."""
    clash: str | None
    """Why real Caffe cannot run this net although the lowering can, or None."""
    one_by_one: str | None
    """Why images must run one at a time: in a batch they would affect each other. None: any batch size works."""
    constants: frozenset[int]
    """The values that do not depend on the picture."""


def flattened(shape: Shape | None) -> int:
    """Numbers in a blob of one image; 0 when unknown."""
    return 0 if shape is None else math.prod(shape)
