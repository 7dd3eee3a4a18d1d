"""Applying a spec to pixels. The order is Caffe's data transformer: resize, center crop, channel order, minus mean,
times scale (src/caffe/data_transformer.cpp; the crop's offset is `(size - crop) // 2`), and divided by std.

With the arithmetic "pillow", the resize is Pillow's, with antialiasing, and sizes and crops are rounded as by
torchvision (transforms/functional.py: `resize`, `center_crop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from featd.preprocess.float_resize import resize_float
from featd.preprocess.spec import PreprocessSpec

_INTERPOLATIONS = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}
_PILLOWS = {"linear": "BILINEAR", "area": "BOX", "cubic": "BICUBIC", "nearest": "NEAREST"}
_LUMA_BGR = np.array([0.0721, 0.7154, 0.2125], np.float32)
"""skimage.color.rgb2gray's weights, with which `caffe.io.load_image(color=False)` makes grey; OpenCV's are others."""


def apply(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec, out: npt.NDArray[Any]) -> None:
    """Write the net's input made of `pixels` into `out`, or what `prepare` makes it of.

    pixels: uint8 (H, W, 3) in BGR order, or (H, W) for channels "gray" (which also takes colour); with alpha one more
    channel, (H, W, 4) or (H, W, 2), or else 255 is taken for it.
    out: float32 of shape `spec.shape`: see `prepare`. Or uint8 of shape `spec.pixels_shape`: resized and cropped, in
    the order of `pixels`; not with pycaffe's arithmetic, whose pixels are no whole numbers.
    """
    at_size = _bring_to_size(_with_alpha(pixels) if spec.has_alpha else pixels, spec)
    cut = spec.shape[1:]
    top, left = _offset(at_size.shape[0] - cut[0], spec), _offset(at_size.shape[1] - cut[1], spec)
    at_size = at_size[top : top + cut[0], left : left + cut[1]]
    if out.dtype == np.uint8:
        out[...] = at_size.reshape(out.shape)
    else:
        prepare(at_size, spec, out)


def prepare(pixels: npt.NDArray[Any], spec: PreprocessSpec, out: npt.NDArray[np.float32]) -> None:
    """Channel order, mean and scale: the second half of `apply`, which `featd.engines.first_nodes` does in the graph.

    pixels: of the size of `out`, (H, W), (H, W, 1) or (H, W, C). out: float32, shape `spec.shape`, values
    (x - mean) * scale / std, or x where there is a `spec.mean_after_crops`.
    """
    planes = [pixels.reshape(spec.shape[1:])] if spec.depth == 1 else list(cv2.split(pixels))
    if spec.swaps_channels:
        planes[:3] = planes[2::-1]
    if spec.mean_after_crops is not None:
        for plane, target in zip(planes, out, strict=True):
            target[...] = plane
        return
    for plane, value, target in zip(planes, cropped_mean(spec), out, strict=True):
        np.subtract(plane, value, out=target, dtype=np.float32)
    if spec.scales:
        for target, factor in zip(out, spec.factors, strict=True):
            np.multiply(target, factor, out=target)


def _offset(rest: int, spec: PreprocessSpec) -> int:
    """Where the crop begins, of so many pixels that are cut off. torchvision rounds halves to even numbers."""
    return round(rest / 2) if spec.arithmetic == "pillow" else rest // 2


def _with_alpha(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        return pixels
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def _bring_to_size(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Grey where the net wants it, and resized: uint8, or float32 with pycaffe's arithmetic."""
    gray = spec.is_gray and pixels.ndim == 3 and pixels.shape[2] > 2
    height, width = resized_to(pixels.shape[0], pixels.shape[1], spec)
    if spec.arithmetic == "skimage":
        floats = cv2.transform(pixels.astype(np.float32), _LUMA_BGR[None]) if gray else pixels
        return resize_float(floats, height, width)
    if gray:
        colours = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY)
        pixels = np.dstack([colours, pixels[..., 3]]) if spec.has_alpha else colours
    if (height, width) == pixels.shape[:2]:
        return pixels
    if spec.arithmetic == "pillow":
        from PIL import Image  # most decoders do not need it

        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(
            image.resize((width, height), getattr(Image.Resampling, _PILLOWS[spec.interpolation]))
        )
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=_INTERPOLATIONS[spec.interpolation]))


def resized_to(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) after the resize. short_side: the smallest picture of these proportions that covers
    `size`; whole numbers, rounded half up, so that every platform agrees, or down, as torchvision does."""
    wanted_height, wanted_width = spec.size
    if spec.resize == "warp":
        return wanted_height, wanted_width
    if spec.arithmetic == "pillow":
        if wanted_height * width >= wanted_width * height:
            return wanted_height, max(wanted_width, width * wanted_height // height)
        return max(wanted_height, height * wanted_width // width), wanted_width
    if wanted_height * width >= wanted_width * height:  # the height decides
        return wanted_height, max(wanted_width, (2 * width * wanted_height + height) // (2 * height))
    return max(wanted_height, (2 * height * wanted_width + width) // (2 * width)), wanted_width


def cropped_mean(spec: PreprocessSpec) -> Sequence[Any]:
    """What is subtracted of each channel: a float32, or an array (height, width) of them."""
    if not isinstance(spec.mean, np.ndarray):
        return [np.float32(value) for value in spec.mean]
    height, width = spec.shape[1:]
    top, left = _offset(spec.mean.shape[1] - height, spec), _offset(spec.mean.shape[2] - width, spec)
    return list(spec.mean[:, top : top + height, left : left + width])
