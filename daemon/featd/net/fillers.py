"""The arrays that Caffe fills by itself where the weights hold nothing for a layer: constant and bilinear fillers.

Only where the definition names the filler: a layer without one is more likely a layer of another net.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featd.net.caffemodel import StoredBlob
from featd.net.graph import Layer, Shape

_FILLERS: Final = {
    "Convolution": ("convolution_param", "weight_filler", "bias_filler"),
    "Deconvolution": ("convolution_param", "weight_filler", "bias_filler"),
    "InnerProduct": ("inner_product_param", "weight_filler", "bias_filler"),
    "Embed": ("embed_param", "weight_filler", "bias_filler"),
    "Scale": ("scale_param", "filler", "bias_filler"),
    "Bias": ("bias_param", "filler"),
    "PReLU": ("prelu_param", "filler"),
    "Normalize": ("norm_param", "scale_filler"),
}
"""Type -> its block and the fillers of its arrays, in Caffe's order."""
_MOST: Final = 2**28


def filled(layer: Layer, at: int, shape: Shape) -> StoredBlob | None:
    """What Caffe fills array `at` of a layer with, or None: it is random, or the definition names no filler."""
    block, *names = _FILLERS.get(layer.type, ("",))
    if layer.type == "Scale" and len(layer.bottoms) > 1:
        names = names[1:]
    if at >= len(names) or math.prod(shape) > _MOST:
        return None
    param = getattr(layer.param, block)
    # A bias is zero unless its filler says otherwise.
    if not param.HasField(names[at]) and not (at and param.HasField(names[0])):
        return None
    filler, data = getattr(param, names[at]), None
    if filler.type == "constant" and math.isfinite(filler.value):
        data = np.broadcast_to(np.float32(filler.value), math.prod(shape))
    elif filler.type == "bilinear" and len(shape) == 4 and shape[2] == shape[3]:
        data = np.tile(_bilinear(shape[3]), shape[0] * shape[1])
    return None if data is None else StoredBlob(shape, False, data)


def _bilinear(size: int) -> npt.NDArray[Any]:
    """BilinearFiller of filler.hpp, one filter, flat: the weights of enlarging by half of its size."""
    factor = math.ceil(size / 2)
    centre = np.float32((2 * factor - 1 - factor % 2) / (2.0 * factor))
    line = 1 - np.abs(np.arange(size, dtype=np.float32) / np.float32(factor) - centre)
    return np.outer(line, line).ravel().astype(np.float32)
