"""From pixels to the net's input: a stored, hashed spec and the one function that applies it.

The order is Caffe's data transformer: resize, center crop, channel order, minus mean, times scale
(src/caffe/data_transformer.cpp; the crop's offset is `(size - crop) // 2`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from featd.errors import ConfigError
from featd.images.float_resize import resize_float, resize_mean
from featd.images.mean_file import read_mean
from featd.images.presets import ILSVRC_MEAN_BGR, PRESETS, Preset
from featd.net.net import CAFFE_MEAN_BGR

if TYPE_CHECKING:  # decoder processes need no pydantic
    from featd.config import PreprocessConfig

_INTERPOLATIONS = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}
_REORDERED = {("bgr", "rgb"), ("rgb", "bgr")}
_LUMA_BGR = np.array([0.0721, 0.7154, 0.2125], np.float32)
"""skimage.color.rgb2gray's weights, with which `caffe.io.load_image(color=False)` makes grey; OpenCV's are others."""


class PreprocessDefaults(Protocol):
    """What a net asks for where the configuration is silent."""

    @property
    def size(self) -> tuple[int, int]: ...  # (height, width)
    @property
    def channels(self) -> str: ...
    @property
    def mean(self) -> Sequence[float]: ...  # in the order of `channels`
    @property
    def scale(self) -> float: ...


@dataclass(frozen=True, slots=True, eq=False)
class PreprocessSpec:
    """Everything that decides how pixels become input. Sizes are (height, width), in pixels.

    `size`: what a picture is resized to ("warp"), or at least covers ("short_side": as small as possible with
    its proportions kept). `crop`: the net's input, cut from the center. `mean`: one value per channel, or a
    mean image float32 (C, h, w) as large as `size` or as `crop`; both in the order of `channels`.
    `arithmetic`: "opencv" resizes whole grey levels, "skimage" floats, linearly, as pycaffe does. `crops`: "ten"
    leaves the picture at `size`, of which `featd.engines.ten_crop` makes ten of `crop`.
    """

    orientation: str
    resize: str
    size: tuple[int, int]
    interpolation: str
    channels: str
    mean: tuple[float, ...] | npt.NDArray[np.float32]
    scale: float
    crop: tuple[int, int]
    max_pixels: int
    arithmetic: str = "opencv"
    crops: str = "center"

    @property
    def depth(self) -> int:
        """Channels of the net's input, C."""
        return 1 if self.channels == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what `apply` makes, (C, height, width): one input, or with ten crops what they are cut from."""
        return (self.depth, *(self.size if self.crops == "ten" else self.crop))

    @property
    def decode_gray(self) -> bool:
        """Whether the decoder is to make the picture grey; pycaffe does that afterwards, in floats."""
        return self.channels == "gray" and self.arithmetic == "opencv"

    @property
    def mean_after_crops(self) -> npt.NDArray[np.float32] | None:
        """The mean image (C, *crop) that is taken off each of ten crops, mirrored ones too, as pycaffe does, and
        not off the picture before; `apply` then leaves mean and scale to the engine."""
        if self.crops != "ten" or not isinstance(self.mean, np.ndarray) or self.mean.shape[1:] == self.size:
            return None
        return self.mean

    def identity(self) -> dict[str, Any]:
        """What counts for the fingerprint, as JSON knows it. A mean image counts by the SHA-256 of its values.

        max_pixels is left out: it decides which pictures are refused, not what a vector is. A field that came
        later counts only when it is not at its default.
        """
        mean: Any
        if isinstance(self.mean, np.ndarray):
            values = np.ascontiguousarray(self.mean, "<f4")
            mean = {"shape": list(values.shape), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
        else:
            mean = [float(value) for value in self.mean]
        later = {"arithmetic": self.arithmetic, "crops": self.crops}
        defaults = {"arithmetic": "opencv", "crops": "center"}
        return {
            **{name: value for name, value in later.items() if value != defaults[name]},
            "channels": self.channels,
            "crop": list(self.crop),
            "interpolation": self.interpolation,
            "mean": mean,
            "orientation": self.orientation,
            "resize": self.resize,
            "scale": float(self.scale),
            "size": list(self.size),
        }

    def to_bytes(self) -> bytes:
        """The whole spec for another process: a line of JSON, then the mean image's values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "mean"}
        values = b""
        if isinstance(self.mean, np.ndarray):
            fields["mean_shape"] = self.mean.shape
            values = np.ascontiguousarray(self.mean, "<f4").tobytes()
        else:
            fields["mean"] = list(self.mean)
        return json.dumps(fields).encode() + b"\n" + values

    @classmethod
    def from_bytes(cls, data: bytes) -> PreprocessSpec:
        """The spec that `to_bytes` wrote."""
        line, _, values = data.partition(b"\n")
        fields = json.loads(line)
        shape = fields.pop("mean_shape", None)
        if shape is None:
            mean: tuple[float, ...] | npt.NDArray[np.float32] = tuple(fields.pop("mean"))
        else:
            mean = np.frombuffer(values, "<f4").astype(np.float32).reshape(shape)
        return cls(
            **{**fields, "size": tuple(fields["size"]), "crop": tuple(fields["crop"]), "mean": mean},
        )


def resolve(
    config: PreprocessConfig, input_shape: tuple[int, int, int], defaults: PreprocessDefaults
) -> PreprocessSpec:
    """The spec for a net of input (C, H, W): the configuration over its preset and the net's own defaults.

    `size` in the configuration is [height, width]. ConfigError names the key that does not fit.
    """
    depth, *crop_list = input_shape
    crop = (crop_list[0], crop_list[1])
    channels = config.channels or defaults.channels
    wanted = 1 if channels == "gray" else 3
    if depth != wanted:
        way_out = {1: 'write channels = "gray"', 3: 'write channels = "bgr" or "rgb"'}.get(
            depth, "featd prepares one channel or three"
        )
        raise ConfigError(
            f"preprocess.channels: {channels!r} gives {wanted} channel(s), the net's input has {depth}: {way_out}"
        )
    preset = PRESETS[config.preset]
    arithmetic = config.arithmetic or preset.arithmetic
    interpolation = config.interpolation or preset.interpolation
    if arithmetic == "skimage" and interpolation != "linear":
        raise ConfigError(
            f'preprocess.interpolation: arithmetic "skimage" resizes linearly, not by {interpolation!r}: leave '
            'interpolation out, or write arithmetic = "opencv"'
        )
    size = _resolve_size(config, crop, defaults, preset)
    return PreprocessSpec(
        orientation=config.orientation or preset.orientation,
        resize=config.resize or preset.resize,
        size=size,
        interpolation=interpolation,
        channels=channels,
        mean=_resolve_mean(config.mean, channels, defaults, preset, arithmetic, size, crop),
        scale=defaults.scale if config.scale is None else config.scale,
        crop=crop,
        max_pixels=config.max_pixels,
        arithmetic=arithmetic,
        crops=config.crops,
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
                f"cut from it: write at least [{crop[0]}, {crop[1]}]"
            )
    elif preset.straight and not ten:
        size = crop
    else:  # a default of 256x256 shall not stop a net that takes 299x299
        size = (max(defaults.size[0], crop[0]), max(defaults.size[1], crop[1]))
    if ten and size == crop:
        raise ConfigError(
            f"preprocess.crops: all crops of {crop[0]}x{crop[1]} out of {size[0]}x{size[1]} are the same: write a "
            'larger preprocess.size ([height, width]), or crops = "center"'
        )
    return size


def _resolve_mean(
    configured: tuple[float, ...] | Path | None,
    channels: str,
    defaults: PreprocessDefaults,
    preset: Preset,
    arithmetic: str,
    size: tuple[int, int],
    crop: tuple[int, int],
) -> tuple[float, ...] | npt.NDArray[np.float32]:
    depth = 1 if channels == "gray" else 3
    if isinstance(configured, Path):
        image = read_mean(configured)
        if image.shape[0] != depth:
            raise ConfigError(
                f"preprocess.mean: {configured} has {image.shape[0]} channel(s), the net's input has {depth}"
            )
        if image.shape[1:] == (1, 1):
            return tuple(float(value) for value in image[:, 0, 0])
        if arithmetic == "skimage":  # Transformer.set_mean never crops
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
        if (defaults.channels, channels) in _REORDERED:
            values = values[::-1]
        if len(values) not in (1, depth):
            raise ConfigError(
                f"preprocess.mean: the net's own mean has {len(values)} values, but channels = {channels!r} has "
                f"{depth}: write a mean beside it"
            )
    return values * depth if len(values) == 1 else values


def apply(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec, out: npt.NDArray[np.float32]) -> None:
    """Write the net's input made of `pixels` into `out`.

    pixels: uint8 (H, W, 3) in BGR order, or (H, W) for channels "gray" (which also takes colour).
    out: float32, shape `spec.shape`, values (x - mean) * scale, or x where there is a `spec.mean_after_crops`.
    """
    at_size = _bring_to_size(pixels, spec)
    cut = spec.shape[1:]
    top, left = (at_size.shape[0] - cut[0]) // 2, (at_size.shape[1] - cut[1]) // 2
    at_size = at_size[top : top + cut[0], left : left + cut[1]]
    planes = [at_size] if spec.depth == 1 else list(cv2.split(at_size))
    if spec.channels == "rgb":
        planes.reverse()
    if spec.mean_after_crops is not None:
        for plane, target in zip(planes, out, strict=True):
            target[...] = plane
        return
    mean = _cropped_mean(spec)
    for plane, value, target in zip(planes, mean, out, strict=True):
        np.subtract(plane, value, out=target, dtype=np.float32)
    if spec.scale != 1.0:
        np.multiply(out, np.float32(spec.scale), out=out)


def _bring_to_size(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Grey where the net wants it, and resized: uint8, or float32 with pycaffe's arithmetic."""
    gray = spec.depth == 1 and pixels.ndim == 3
    if spec.arithmetic == "skimage":
        floats = cv2.transform(pixels.astype(np.float32), _LUMA_BGR[None]) if gray else pixels
        return resize_float(floats, *_resized(pixels.shape[0], pixels.shape[1], spec))
    if gray:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    height, width = _resized(pixels.shape[0], pixels.shape[1], spec)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=_INTERPOLATIONS[spec.interpolation]))


def _resized(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) after the resize. short_side: the smallest picture of these proportions that covers
    `size`; whole numbers, rounded half up, so that every platform agrees."""
    wanted_height, wanted_width = spec.size
    if spec.resize == "warp":
        return wanted_height, wanted_width
    if wanted_height * width >= wanted_width * height:  # the height decides
        return wanted_height, max(wanted_width, (2 * width * wanted_height + height) // (2 * height))
    return max(wanted_height, (2 * height * wanted_width + width) // (2 * width)), wanted_width


def _cropped_mean(spec: PreprocessSpec) -> Sequence[Any]:
    if not isinstance(spec.mean, np.ndarray):
        return [np.float32(value) for value in spec.mean]
    height, width = spec.shape[1:]
    top, left = (spec.mean.shape[1] - height) // 2, (spec.mean.shape[2] - width) // 2
    return list(spec.mean[:, top : top + height, left : left + width])
