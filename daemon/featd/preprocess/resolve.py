"""From the [preprocess] section, its preset and the net's own defaults to one spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featd import logs
from featd.config import PreprocessConfig
from featd.errors import ConfigError
from featd.net.net import CAFFE_MEAN_BGR, PreprocessDefaults, caffe_defaults
from featd.preprocess.float_resize import resize_mean
from featd.preprocess.mean_file import read_mean
from featd.preprocess.presets import ILSVRC_MEAN_BGR, OF_CAFFE, PRESETS, Preset
from featd.preprocess.spec import DEPTHS, PreprocessSpec

_log = logs.get("preprocess")


def input_size(config: PreprocessConfig, own: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) that a net's input shall have, whose definition has `own`: `crop`; or `size` where that is
    smaller, since nothing of `own` can be cut from it. Warns where they are `own` with height and width exchanged.

    None: the net takes any. ConfigError where neither the configuration nor its preset names a size, then.
    """
    if own is None:
        return _any_size(config)
    swapped = own[::-1]
    for key in ("size", "crop"):
        if own != swapped and getattr(config, key) == swapped:
            _log.warning(
                "size_swapped",
                f"{key} is the definition's input with height and width exchanged: the net runs with another input than"
                f" it was made for; unless that is meant, write {key} = [{own[0]}, {own[1]}] (height, width)",
                key=f"preprocess.{key}",
                value=f"[{swapped[0]}, {swapped[1]}]",
            )
    if config.crop is not None:
        return config.crop
    if config.size is not None and (config.size[0] < own[0] or config.size[1] < own[1]):
        return config.size
    return own


def _any_size(config: PreprocessConfig) -> tuple[int, int]:
    preset = PRESETS[config.preset]
    if config.crop is not None:
        return config.crop
    if config.size is None and preset.crop is None:
        raise ConfigError(
            "preprocess.size: the net takes pictures of any size: write the one that it was trained with, for example"
            " size = [224, 224] (height, width)"
        )
    if config.size is None or (
        preset.crop is not None and not preset.straight and preset.crop <= min(config.size)
    ):
        assert preset.crop is not None
        return preset.crop, preset.crop
    return config.size


def resolve(
    config: PreprocessConfig, input_shape: tuple[int, int, int], defaults: PreprocessDefaults
) -> PreprocessSpec:
    """The spec for a net of input (C, H, W): the configuration, then its preset, then the net's own defaults.

    `size` in the configuration is [height, width]. ConfigError names the key that does not fit.
    """
    depth, crop = input_shape[0], input_shape[1:]
    defaults = _defaults(config.preset, input_shape, defaults)
    channels = config.channels or defaults.channels
    _check_depth(channels, depth)
    preset = PRESETS[config.preset]
    arithmetic = config.arithmetic or preset.arithmetic
    interpolation = config.interpolation or preset.interpolation
    if arithmetic == "skimage" and interpolation != "linear":
        raise ConfigError(
            f'preprocess.interpolation: arithmetic "skimage" resizes linearly, not by {interpolation!r}: leave '
            'interpolation out, or write arithmetic = "opencv"'
        )
    if arithmetic == "pillow" and channels not in ("bgr", "rgb", "gray"):
        raise ConfigError(
            f"preprocess.arithmetic: Pillow resizes {channels!r} in another way than colours or grey, which featd does"
            ' not: write arithmetic = "opencv"'
        )
    if arithmetic == "skimage" and channels not in ("bgr", "rgb", "gray"):
        raise ConfigError(
            f"preprocess.arithmetic: pycaffe resizes {channels!r} in another way than colours or grey, which featd does"
            ' not: write arithmetic = "opencv"'
        )
    spec = PreprocessSpec(
        orientation=config.orientation or preset.orientation,
        resize=config.resize or preset.resize,
        size=_resolve_size(config, crop, defaults, preset),
        interpolation=interpolation,
        channels=channels,
        mean=(),
        scale=defaults.scale if config.scale is None else config.scale,
        crop=crop,
        max_pixels=config.max_pixels,
        arithmetic=arithmetic,
        crops=config.crops,
        reduce_jpeg=config.reduce_jpeg,
    )
    return replace(
        spec,
        mean=_resolve_mean(config.mean, spec, defaults, preset),
        std=_resolve_std(config.std, spec, defaults),
    )


def _defaults(preset: str, input_shape: tuple[int, int, int], own: PreprocessDefaults) -> PreprocessDefaults:
    """The values of the preset, where it has some of its own, else the net's. ConfigError."""
    if preset in OF_CAFFE:  # also for an ONNX file that was made of a net of Caffe
        return caffe_defaults(input_shape)
    values = PRESETS[preset].values
    if values is not None and input_shape[0] != DEPTHS[values.channels]:
        raise ConfigError(
            f"preprocess.preset: {preset!r} is for colours, and the net's input has {input_shape[0]} channel(s): write"
            ' preset = "fast", and mean and std as the net was trained with'
        )
    return own if values is None else values


def _resolve_std(
    configured: tuple[float, ...] | None, spec: PreprocessSpec, defaults: PreprocessDefaults
) -> tuple[float, ...]:
    """One for each channel, or empty where all are 1."""
    values = tuple(float(value) for value in configured or defaults.std)
    if configured is None and {defaults.channels, spec.channels} == {"bgr", "rgb"}:
        values = values[::-1]
    if len(values) not in (0, 1, spec.depth):
        raise ConfigError(
            f"preprocess.std: {len(values)} values for {spec.depth} channel(s): write one value, or one per channel"
        )
    return () if set(values) <= {1.0} else values * spec.depth if len(values) == 1 else values


def _check_depth(channels: str, depth: int) -> None:
    """ConfigError where the net's input has another number of channels."""
    if depth != DEPTHS[channels]:
        fitting = [f'"{name}"' for name, count in DEPTHS.items() if count == depth]
        raise ConfigError(
            f"preprocess.channels: {channels!r} gives {DEPTHS[channels]} channel(s), the net's input has {depth}: write"
            f" channels = {' or '.join(fitting)}"
        )


def _resolve_size(
    config: PreprocessConfig, crop: tuple[int, int], defaults: PreprocessDefaults, preset: Preset
) -> tuple[int, int]:
    ten = config.crops == "ten"
    if config.size is not None:
        size = (config.size[0], config.size[1])
        if size[0] < crop[0] or size[1] < crop[1]:
            raise ConfigError(
                f"preprocess.size: [{size[0]}, {size[1]}] (height, width) is smaller than the net's input, which is "
                f"cropped from it: write at least [{crop[0]}, {crop[1]}]"
            )
    elif preset.straight and not ten:
        size = crop
    else:  # the default of 256x256 must not exclude a net that takes 299x299
        size = (max(defaults.size[0], crop[0]), max(defaults.size[1], crop[1]))
    if ten and size == crop:
        raise ConfigError(
            f"preprocess.crops: all crops of {crop[0]}x{crop[1]} out of {size[0]}x{size[1]} are the same: write a "
            'larger preprocess.size ([height, width]), or crops = "center"'
        )
    return size


def _resolve_mean(
    configured: tuple[float, ...] | Path | None,
    spec: PreprocessSpec,
    defaults: PreprocessDefaults,
    preset: Preset,
) -> tuple[float, ...] | npt.NDArray[np.float32]:
    depth, size, crop = spec.depth, spec.size, spec.crop
    if isinstance(configured, Path):
        image = read_mean(configured)
        if image.shape[0] != depth:
            raise ConfigError(
                f"preprocess.mean: {configured} has {image.shape[0]} channel(s), the net's input has {depth}"
            )
        if image.shape[1:] == (1, 1):
            return tuple(float(value) for value in image[:, 0, 0])
        if spec.arithmetic == "skimage":  # Transformer.set_mean never crops
            return image if image.shape[1:] == crop else resize_mean(image, *crop)
        if image.shape[1:] not in (size, crop):
            raise ConfigError(
                f"preprocess.mean: {configured} is {image.shape[1]}x{image.shape[2]} (height x width); it must be as "
                f"large as preprocess.size ({size[0]}x{size[1]}) or as the net's input ({crop[0]}x{crop[1]})"
            )
        return image
    if configured is not None:
        values = tuple(float(value) for value in configured)
        if len(values) not in (1, depth):
            raise ConfigError(
                f"preprocess.mean: {len(values)} values for {depth} channel(s): write one value, or one per channel"
            )
    else:
        values = tuple(float(value) for value in defaults.mean) or (0.0,)
        if preset.unrounded_mean and (defaults.channels, values) == ("bgr", CAFFE_MEAN_BGR):
            values = ILSVRC_MEAN_BGR
        if {defaults.channels, spec.channels} == {"bgr", "rgb"}:
            values = values[::-1]
        if len(values) not in (1, depth):
            raise ConfigError(
                f"preprocess.mean: the net's own mean has {len(values)} values, but channels = {spec.channels!r} has "
                f"{depth}: write a mean beside it"
            )
    return values * depth if len(values) == 1 else values
