"""Holds a published net in ONNX Runtime against straight pycaffe, with weights under which every layer is alive."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from architectures.drawing import Drawing, Published
from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.net.net import Net
from nets import by_caffe, distance, load, real_caffe, write_weights
from photographs import WHEEL

Array: TypeAlias = npt.NDArray[np.float32]

LIMIT = 1e-4
"""Relative L2 distance within which a blob must agree, unless the net itself makes more of less; see `noise`."""
NOISE = 1e-6
MOST_NOISE = 20
PHOTOGRAPHS = ("astronaut.png", "coffee.png")
_LIVELY = 1e-4
"""The least relative distance between the features of two photographs; two classes may happen to be that close."""
_LEARNED = ("Convolution", "Deconvolution", "InnerProduct")


@dataclass(frozen=True)
class Seen:
    """What came out for one blob."""

    error: float
    noise: float | None
    """How far the blob moves in Caffe itself when the photographs are changed by `NOISE`; None: not asked."""

    @property
    def limit(self) -> float:
        """Where the error must stay below."""
        return LIMIT if self.noise is None else max(LIMIT, MOST_NOISE * self.noise)


@dataclass(frozen=True)
class Compared:
    """One net."""

    layers: int
    params: int
    blobs: dict[str, Seen]

    @property
    def worst(self) -> Seen:
        """The blob that comes nearest to its limit."""
        return max(self.blobs.values(), key=lambda seen: seen.error / seen.limit)


def compare(published: Published, threads: int = 2) -> Compared:
    """Run the net in both. AssertionError where it is not alive: dead features would agree whatever was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        drawing = published.draw()
        definition, weights = Path(folder, "net.prototxt"), Path(folder, "net.caffemodel")
        definition.write_text(drawing.text(published.form))
        stand_in = definition
        if published.stand_in:
            stand_in = Path(folder, "stand_in.prototxt")
            stand_in.write_text(published.stand_in().text(published.form))
        batch = photographs(drawing)
        params = _weigh(stand_in, weights, batch)
        model = ModelConfig(net=str(definition), weights=weights, blobs=published.blobs, engine="onnxruntime")
        net = load(model)
        reference = model.model_copy(update={"net": str(stand_in)})
        theirs = by_caffe(reference, batch)
        for blob, vectors in theirs.items():
            _check_alive(published.key, blob, vectors)
        ours = _by_onnxruntime(net, batch, threads)
        errors = {blob: distance(ours[blob], theirs[blob]) for blob in published.blobs}
        moved: dict[str, float] = {}
        if max(errors.values()) >= LIMIT:
            shaken = by_caffe(reference, _shaken(batch))
            moved = {blob: distance(shaken[blob], theirs[blob]) for blob in published.blobs}
    blobs = {blob: Seen(error, moved.get(blob)) for blob, error in errors.items()}
    return Compared(len(drawing.layers), params, blobs)


def _by_onnxruntime(net: Net, batch: Array, threads: int) -> dict[str, Array]:
    engine = OnnxRuntimeEngine(net, "cpu", threads)
    try:
        return engine.forward(batch)
    finally:
        engine.close()


def photographs(drawing: Drawing) -> Array:
    """Two photographs as the net takes them: BGR or grey, the mean taken off."""
    channels, height, width = drawing.dims
    made = []
    for name in PHOTOGRAPHS:
        how = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
        picture = cv2.imread(str(WHEEL / name), how)
        assert picture is not None, name
        sized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        made.append((sized - (104, 117, 123)).transpose(2, 0, 1) if channels == 3 else sized[None] - 117)
    return np.stack(made).astype(np.float32)


def _shaken(batch: Array) -> Array:
    noise = np.random.default_rng(1).standard_normal(batch.shape)
    noise *= NOISE * np.linalg.norm(batch) / np.linalg.norm(noise)
    return (batch + noise).astype(np.float32)


def _check_alive(net: str, blob: str, vectors: Array) -> None:
    one, other = vectors
    assert np.isfinite(vectors).all(), f"{net}: {blob} holds numbers that are not finite"
    assert np.count_nonzero(vectors) > 0.02 * vectors.size, f"{net}: {blob} is all but zero"
    assert distance(one, other) > _LIVELY, f"{net}: {blob} is the same for both photographs"


def _weigh(definition: Path, out: Path, batch: Array) -> int:
    """Write weights under which signals neither die nor grow; returns how many numbers they are.

    Layer by layer, as D. Mishkin and J. Matas begin a training ("All you need is a good init", 2015): random
    weights, scaled so that what the layer makes of the photographs has the deviation wanted, and for a BatchNorm the
    statistics of what goes into it.
    """
    caffe = real_caffe()
    net = caffe.Net(str(definition), caffe.TEST)
    entry = net.inputs[0]
    net.blobs[entry].reshape(*batch.shape)
    net.reshape()
    net.blobs[entry].data[...] = batch
    rng = np.random.default_rng(0)
    names, kinds = list(net._layer_names), [layer.type for layer in net.layers]
    blobs = [net.blobs[name] for name in net.blobs]
    # The normalization of AlexNet's time does nothing to small numbers: there, features as large as trained ones.
    spread = 30.0 if "LRN" in kinds else 1.0
    for at, kind in enumerate(kinds):
        params = [blob.data for blob in net.layers[at].blobs]
        if not params:
            net._forward(at, at)
        elif kind in _LEARNED:
            top = blobs[net._top_ids(at)[0]]
            _random(params, rng)
            net._forward(at, at)
            wanted = spread if kind == "Convolution" else 1.0
            factor = wanted / max(float(top.data.std()), 1e-20)
            params[0] *= factor
            top.data[...] *= factor
            for bias in params[1:]:
                bias[...] = rng.standard_normal(bias.shape) * 0.1 * wanted
                top.data[...] += bias.reshape((-1,) + (1,) * (top.data.ndim - 2))
        else:
            _normalizer(kind, params, blobs[net._bottom_ids(at)[0]].data, rng)
            net._forward(at, at)
    arrays = {name: [blob.data for blob in net.params[name]] for name in names if name in net.params}
    write_weights(out, definition.stem, arrays)
    return sum(array.size for held in arrays.values() for array in held)


def _random(params: list[Any], rng: np.random.Generator) -> None:
    weight = params[0]
    rng.random(dtype=np.float32, out=weight.reshape(-1))
    weight -= 0.5
    weight *= math.sqrt(12 / max(math.prod(weight.shape[1:]), 1))
    for bias in params[1:]:
        bias[...] = 0


def _normalizer(kind: str, params: list[Any], bottom: Array, rng: np.random.Generator) -> None:
    if kind == "BatchNorm":
        axes = (0, *range(2, bottom.ndim))
        # As training leaves them: sums over some batches, and their number.
        params[2][...] = 0.5
        params[0][...] = bottom.mean(axes) * 0.5
        params[1][...] = np.maximum(bottom.var(axes), 0.01 * bottom.var()) * 0.5
    elif kind == "PReLU":
        params[0][...] = rng.uniform(-0.1, 0.4, params[0].shape)
    elif kind == "Normalize":
        params[0][...] = rng.uniform(5, 20, params[0].shape)
    else:
        params[0][...] = rng.uniform(0.5, 1.5, params[0].shape)
        for bias in params[1:]:
            bias[...] = rng.standard_normal(bias.shape) * 0.3
