"""A loaded net: everything an engine needs, and everything that decides its vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featd.net.graph import Shape, Step
from featd.net.layers.table import TYPES
from featd.net.weights import Weight


@dataclass(frozen=True, slots=True)
class PreprocessDefaults:
    """How pictures are brought to a net when [preprocess] does not say otherwise."""

    size: tuple[int, int]
    """(height, width) to resize to, before the centre crop to the net's input."""
    channels: str
    """`bgr` or `gray`."""
    mean: tuple[float, ...]
    """Subtracted per channel, in the order of `channels`, from pixels 0..255."""
    scale: float
    """Multiplied after the mean is subtracted."""


CAFFE_SIZE: Final = (256, 256)
CAFFE_MEAN_BGR: Final = (104.0, 117.0, 123.0)
"""ImageNet's mean per channel, rounded, as the published Caffe models state it."""


def caffe_defaults(input_shape: tuple[int, int, int]) -> PreprocessDefaults:
    """What BVLC's models expect: 256 x 256 before the crop, BGR, ImageNet's mean, 0..255."""
    channels, height, width = input_shape
    size = (max(CAFFE_SIZE[0], height), max(CAFFE_SIZE[1], width))
    if channels == 3:
        return PreprocessDefaults(size, "bgr", CAFFE_MEAN_BGR, 1.0)
    return PreprocessDefaults(size, "gray", (0.0,), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """A net cut down to what its wanted blobs need. Made by `featd.net.load.load_net`."""

    name: str
    source: str
    """Path of the definition, or the name of a built-in net."""
    blobs: dict[str, int]
    """Wanted blob -> flattened size, in the order asked for. 0: a layer that featd does not know stands before it,
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
    unused_weights: tuple[str, ...]
    prototxt: str
    """The whole definition as text, as it was read."""
    weights_path: Path | None
    """None: computed, see `weights`."""
    weights_stat: tuple[int, ...] | None
    """What stat said when the weights were read: a second reader must find the same."""
    clash: str | None
    """Why real Caffe cannot run this net although the lowering can, or None."""

    @property
    def unsupported(self) -> tuple[Step, ...]:
        """Steps of types that the onnxruntime engine does not run."""
        return tuple(step for step in self.layers if step.layer.type not in TYPES)


def flattened(shape: Shape | None) -> int:
    """Numbers per image in a blob; 0 when unknown."""
    return math.prod(shape[1:]) if shape else 0


def file_stat(path: Path) -> tuple[int, ...]:
    """What must not change while a file is read twice."""
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
