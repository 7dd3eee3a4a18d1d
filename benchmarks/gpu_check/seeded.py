"""Nets, weights and pictures that are the same on every machine, so that vectors made by real Caffe elsewhere can be
compared with.

The numbers are bits of PCG64, whose raw stream numpy keeps, times factors that `reference.py` has found: under them
signals neither die nor grow from layer to layer.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from architectures.registry import NETS as PUBLISHED
from featd.net import prototxt
from featd.net.batch import any_batch
from featd.net.graph import Shape, trace
from featd.net.shapes import infer
from featd.net.upgrade import upgrade
from nets import write_weights

Array: TypeAlias = npt.NDArray[np.float32]
Factors: TypeAlias = dict[str, list[float]]
"""Layer -> factor of its weights and of its bias; of a BatchNorm, mean and variance of what goes into it."""

NETS = {
    "SqueezeNet 1.1": "pool10",
    "MobileNet v2": "pool8",
    "LightCNN-29": "etlwise_fc1",
    "CaffeNet": "fc7",
    "GoogLeNet": "pool5/7x7_s1",
    "ResNet-50": "pool5",
    "VGG16": "fc7",
    "NIN ImageNet": "pool4",
    "Inception-BN": "global_pool",
    "DenseNet-121": "pool5",
    "Inception v3": "pool_8x8_s1",
    "ResNeXt-50": "pool_ave",
}
"""Net -> the blob whose vectors are compared."""
SMALL = ("SqueezeNet 1.1", "MobileNet v2", "LightCNN-29")
PICTURES = 2
VECTORS = Path(__file__).with_name("vectors.npz")
FACTORS = Path(__file__).with_name("factors.json")


def factors(net: str) -> Factors:
    return json.loads(FACTORS.read_text())[net]  # type: ignore[no-any-return]


def uniform(name: str, shape: Shape) -> Array:
    """Numbers from -0.5 up to 0.5 that belong to this name; exact, as there are 24 bits in each."""
    count = math.prod(shape)
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count // 2 + 1).view(np.uint32)[:count]
    values = (raw >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)
    return values.reshape(shape)


def arrays(kind: str, name: str, shapes: list[Shape], factor: list[float]) -> list[Array]:
    """The arrays of one layer, in Caffe's order."""
    made = [uniform(f"{name}/{at}", shape) for at, shape in enumerate(shapes)]
    match kind:
        case "BatchNorm":
            mean, variance = (np.float32(value) for value in factor)
            made[0] = mean + made[0] * np.float32(0.2) * np.sqrt(variance)
            made[1] = variance * (made[1] * np.float32(0.5) + 1)
            made[2] = np.ones(shapes[2], np.float32)
        case "Scale":
            made[0] += 1
            made[1:] = [array * np.float32(0.6) for array in made[1:]]
        case "PReLU":
            made[0] = made[0] * np.float32(0.5) + np.float32(0.15)
        case _:
            made = [array * np.float32(by) for array, by in zip(made, factor, strict=False)]
    return made


def weights_of(key: str) -> dict[str, list[Array]]:
    """The arrays of each layer that has some."""
    layers = any_batch(upgrade(prototxt.parse(PUBLISHED[key].draw().text(), key), key), key)
    shapes = infer(trace(layers, key).steps, 1, tolerant=True).params
    found = factors(key)
    return {
        layer.key: arrays(layer.type, layer.key, shapes[layer.key] or [], found.get(layer.key, []))
        for layer in layers
        if shapes[layer.key]
    }


def write_net(key: str, folder: Path) -> tuple[Path, Path]:
    """The definition and the weights of a net as files in `folder`. Needs no Caffe."""
    definition, weights = folder / "net.prototxt", folder / "net.caffemodel"
    definition.write_text(PUBLISHED[key].draw().text())
    write_weights(weights, key, weights_of(key))
    return definition, weights


def prepared(key: str, count: int = PICTURES) -> Array:
    """Pictures as the net takes them, less their mean: blocks of several sizes, float32 (count, C, H, W)."""
    channels, height, width = PUBLISHED[key].draw().dims
    made = np.zeros((count, channels, height, width), np.int64)
    for size in (64, 16, 4, 1):
        rows, columns = -(-height // size), -(-width // size)
        raw = np.random.PCG64(size).random_raw(count * channels * rows * columns)
        blocks = (raw >> np.uint64(56)).astype(np.int64).reshape(count, channels, rows, columns)
        made += blocks.repeat(size, axis=2).repeat(size, axis=3)[:, :, :height, :width]
    return (made // 4 - 117).astype(np.float32)


def distance(ours: Any, theirs: Any) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(np.float64(ours) - theirs) / np.linalg.norm(np.float64(theirs)))


def cosine(ours: Any, theirs: Any) -> float:
    """The least cosine similarity of two rows."""
    ours, theirs = np.float64(ours), np.float64(theirs)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / lengths).min())
