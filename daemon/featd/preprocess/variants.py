"""Usual mistakes of preprocessing, by name: candidates for why vectors do not agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from featd.net.net import CAFFE_MEAN_BGR, CAFFE_SIZE
from featd.preprocess.float_resize import resize_mean
from featd.preprocess.presets import CLIP, DINO, FAST, ILSVRC_MEAN_BGR, IMAGENET, PRESETS, PYCAFFE
from featd.preprocess.spec import PreprocessSpec

Mean = tuple[float, ...] | npt.NDArray[np.float32]

_MEAN_NAMES = {
    CAFFE_MEAN_BGR: "the mean 104, 117, 123 of Caffe's models",
    ILSVRC_MEAN_BGR: "ILSVRC's mean per channel, unrounded",
    (103.939, 116.779, 123.68): "the mean 103.939, 116.779, 123.68 of VGG's models",
}
_SCALES = {
    1.0: "scale 1",
    1 / 255: "scale 1/255",
    1 / 256: "scale 1/256",
    255.0: "scale 255",
    0.017: "scale 0.017",
}


def variants(spec: PreprocessSpec) -> list[tuple[str, PreprocessSpec]]:
    """Other preprocessings of the same net that are easily confused with `spec`, the likeliest first.

    Each has a name that completes the sentence "the catalog's vectors match ...". None is `spec` itself and no two are
    alike. The orientation stays the same, since the golden pictures have none. All have the crop `spec.crop`, but ten
    crops change `shape`, the engine's input.
    """
    seen = {_key(spec)}
    found = []
    for name, variant in _all(spec):
        if variant.has_alpha and variant.arithmetic == "skimage":
            continue  # there is none: see `resolve`
        if (key := _key(variant)) not in seen:
            seen.add(key)
            found.append((name, variant))
    return found


def _key(spec: PreprocessSpec) -> str:
    return json.dumps(replace(spec, orientation="apply").identity(), sort_keys=True)


def _all(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    """All candidates, with repetitions: the first name of each counts."""
    yield from _presets(spec)
    yield from _channels(spec)
    yield from _means(spec)
    for scale, name in _SCALES.items():
        yield name, replace(spec, scale=scale)
    if not isinstance(spec.mean, np.ndarray):
        # A mean for pixels of 0..1; featd subtracts it from pixels of 0..255 and scales them afterwards.
        mean = tuple(value * 255 for value in spec.mean)
        yield "scale 1/255 before the mean is subtracted", replace(spec, scale=1 / 255, mean=mean)
    yield from _resizes(spec)
    yield from _crops(spec)


def _presets(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    large = _large(spec)
    per_channel = _per_channel(spec.mean)
    straight = spec.crop if spec.crops == "center" else large
    scripts = _by_preset(spec, PYCAFFE, _fitted(spec.mean, spec.crop))
    yield 'preset "pycaffe"', replace(scripts, size=straight)
    if len(per_channel) == 3:
        ilsvrc = ILSVRC_MEAN_BGR if spec.channels == "bgr" else ILSVRC_MEAN_BGR[::-1]
        yield 'preset "pycaffe" with its own mean', replace(scripts, size=straight, mean=ilsvrc)
    yield f'preset "pycaffe" with size = {list(large)}', replace(scripts, size=large)
    yield f'preset "pycaffe" with size = {list(spec.size)}', replace(scripts, size=spec.size)
    whole = _by_preset(spec, FAST, _cut(spec.mean, large, spec.crop))
    yield 'preset "fast" or "caffe-transform"', replace(whole, size=large)
    name = f'preset "fast" or "caffe-transform" with size = {list(spec.size)}'
    yield name, replace(whole, mean=_cut(spec.mean, spec.size, spec.crop))
    for name in (IMAGENET, CLIP, DINO):
        values = PRESETS[name].values
        if values is not None and spec.depth == 3:
            theirs = replace(
                _by_preset(spec, name, values.mean), channels=values.channels, scale=values.scale
            )
            size = straight if PRESETS[name].straight else large
            yield f'preset "{name}"', replace(theirs, std=values.std, size=size)


def _by_preset(spec: PreprocessSpec, name: str, mean: Mean) -> PreprocessSpec:
    preset = PRESETS[name]
    return replace(
        spec,
        resize=preset.resize,
        interpolation=preset.interpolation,
        arithmetic=preset.arithmetic,
        mean=mean,
        std=(),
    )


def _channels(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    if spec.is_gray:
        return
    other = {"rgb": "bgr", "bgr": "rgb", "rgba": "bgra", "bgra": "rgba"}[spec.channels]
    swapped = _swapped(spec.mean)
    yield f'channels = "{other}"', replace(spec, channels=other, mean=swapped)
    yield f'channels = "{other}" with the mean in the order {spec.channels}', replace(spec, channels=other)
    yield f"a mean in the order {other}", replace(spec, mean=swapped)


def _means(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    yield "no mean", replace(spec, mean=(0.0,) * spec.depth)
    if isinstance(spec.mean, np.ndarray):
        yield "the mean image averaged per channel", replace(spec, mean=_per_channel(spec.mean))
        if spec.crops == "center":
            resized = _fitted(spec.mean, spec.crop)
            yield "the mean image resized to the net's input, not cropped", replace(spec, mean=resized)
    if spec.depth == 3:
        for values, name in _MEAN_NAMES.items():
            yield name, replace(spec, mean=values if spec.channels == "bgr" else values[::-1])
    yield "the mean as a share of 255", replace(spec, mean=_times(spec.mean, 1 / 255))
    yield "255 times the mean", replace(spec, mean=_times(spec.mean, 255.0))


def _resizes(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    for interpolation in ("linear", "area", "cubic", "nearest"):
        chosen = replace(spec, interpolation=interpolation, arithmetic="opencv")
        yield f'interpolation = "{interpolation}"', chosen
    other = "short_side" if spec.resize == "warp" else "warp"
    yield f'resize = "{other}"', replace(spec, resize=other)
    for size in (spec.crop, _large(spec)):
        if spec.crops == "center" or size != spec.crop:
            mean = _cut(spec.mean, size, spec.crop)
            sized = replace(spec, size=size, mean=mean)
            yield f"size = {list(size)}", sized
            yield f'resize = "{other}" and size = {list(size)}', replace(sized, resize=other)


def _crops(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    if spec.crops == "ten":
        yield 'crops = "center"', replace(spec, crops="center")
        return
    size = spec.size if spec.size != spec.crop else _large(spec)
    if size != spec.crop:
        yield 'crops = "ten"', replace(spec, crops="ten", size=size, mean=_cut(spec.mean, size, spec.crop))


def _large(spec: PreprocessSpec) -> tuple[int, int]:
    """The size from which Caffe's models are cropped."""
    return max(CAFFE_SIZE[0], spec.crop[0]), max(CAFFE_SIZE[1], spec.crop[1])


def _per_channel(mean: Mean) -> tuple[float, ...]:
    if not isinstance(mean, np.ndarray):
        return mean
    return tuple(float(value) for value in mean.mean((1, 2), dtype=np.float64))


def _swapped(mean: Mean) -> Mean:
    """With red and blue exchanged."""
    if isinstance(mean, np.ndarray):
        return np.concatenate([mean[2::-1], mean[3:]])
    return (*mean[2::-1], *mean[3:])


def _fitted(mean: Mean, crop: tuple[int, int]) -> Mean:
    """The mean, resized as by `Transformer.set_mean`."""
    return resize_mean(mean, *crop) if isinstance(mean, np.ndarray) and mean.shape[1:] != crop else mean


def _cut(mean: Mean, size: tuple[int, int], crop: tuple[int, int]) -> Mean:
    """The mean image where its size fits, else its average per channel."""
    return mean if isinstance(mean, np.ndarray) and mean.shape[1:] in (size, crop) else _per_channel(mean)


def _times(mean: Mean, factor: float) -> Mean:
    if isinstance(mean, np.ndarray):
        return np.asarray(mean * np.float32(factor), np.float32)
    return tuple(value * factor for value in mean)
