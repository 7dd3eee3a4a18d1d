"""The built-in net `gist`: the spatial envelope of a picture, as a Caffe net with computed weights.

After A. Oliva and A. Torralba, "Modeling the Shape of the Scene: A Holistic Representation of the Spatial
Envelope", IJCV 42(3), 2001: energies of a bank of Gabor filters, averaged over a grid. Here, over four octaves
(a pyramid of 2 x 2 averages) and eight orientations, on a 4 x 4 grid: 512 numbers. Coarse colour (two opponent
channels on the same grid, 32 numbers) is added, and the whole has length 1. Brightness itself is not
in it: the filters sum to zero, and so do the opponent weights.

Only layers of Caffe 1.0. What is computed here decides vectors: a change of any number raises REVISION.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featd.net.caffemodel import StoredBlob, StoredLayer
from featd.net.net import PreprocessDefaults

REVISION: Final = 1
NAME: Final = "gist"
BLOB: Final = "gist"

SIZE: Final = 128
"""Input height and width, pixels."""
ORIENTATIONS: Final = 8
GRID: Final = 4
TAPS: Final = 9
"""Height and width of a filter. With it every level's map divides evenly by GRID."""
WAVELENGTH: Final = 4.0
"""Wavelength of a filter, in pixels of its level; it doubles from level to level."""
SIGMA: Final = 2.0
"""Sigma of a filter's Gaussian envelope, in pixels of its level: a bandwidth of about one octave."""
# Of each level: (stride of its filters, size of a grid cell). Energy is smooth, so fine levels can skip pixels.
_LEVELS: Final = ((2, 15), (2, 7), (1, 6), (1, 2))
_ENERGY_FLOOR: Final = 1.0
"""Added before the square root, in squared grey levels, so that JPEG noise in flat regions stays small."""
_COLOUR_WEIGHT: Final = 0.5

PREPROCESS: Final = PreprocessDefaults((SIZE, SIZE), "bgr", (104.0, 117.0, 123.0), 1.0)

# Rows in the order B, G, R. Luminance is ITU-R BT.601; the opponent axes sum to zero, so that grey gives zero.
_LUMINANCE: Final = ((0.114, 0.587, 0.299),)
_OPPONENTS: Final = ((0.0, -0.5, 0.5), (-0.5, 0.25, 0.25))


def gabor_bank() -> npt.NDArray[np.float32]:
    """(2 * ORIENTATIONS, 1, TAPS, TAPS): the even filters, then the odd ones; each sums to zero.

    Rounded to multiples of 2^-20, so that the last bit of a platform's exp and cos does not show.
    """
    half = TAPS // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    envelope = np.exp(-(x * x + y * y) / (2 * SIGMA * SIGMA))
    bank = np.empty((2, ORIENTATIONS, TAPS, TAPS))
    for at in range(ORIENTATIONS):
        angle = math.pi * at / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        even = envelope * np.cos(phase)
        bank[0, at] = even - envelope * (even.sum() / envelope.sum())
        bank[1, at] = envelope * np.sin(phase)
    # A wave of amplitude 1 at the filter's own frequency gives energy 1.
    bank *= 2 / envelope.sum()
    return _rounded(bank.reshape(2 * ORIENTATIONS, 1, TAPS, TAPS))


def _rounded(values: Any) -> npt.NDArray[np.float32]:
    return (np.round(np.asarray(values, np.float64) * 2**20) / 2**20).astype(np.float32)


@functools.cache
def weights() -> dict[str, tuple[npt.NDArray[np.float32], ...]]:
    """Layer name -> its arrays, in Caffe's order, in the order of `prototxt`."""
    pairs = np.zeros((ORIENTATIONS, 2 * ORIENTATIONS, 1, 1), np.float32)
    for at in range(ORIENTATIONS):
        pairs[at, at] = pairs[at, at + ORIENTATIONS] = 1
    length = sum(cells for _, cells in _PARTS)
    arrays: dict[str, tuple[npt.NDArray[np.float32], ...]] = {
        "luminance": (_rounded(_LUMINANCE).reshape(1, 3, 1, 1),),
        "opponents": (_rounded(_OPPONENTS).reshape(2, 3, 1, 1) * np.float32(_COLOUR_WEIGHT),),
        "squared_length": (np.ones((1, length), np.float32),),
        "spread": (np.ones((length, 1), np.float32),),
    }
    for level in range(len(_LEVELS)):
        arrays[f"gabor{level}"] = (gabor_bank(),)
        arrays[f"pairs{level}"] = (pairs,)
    return arrays


def stored_weights() -> list[StoredLayer]:
    """The same, in the form in which a .caffemodel is read."""
    return [
        StoredLayer(name, tuple(StoredBlob(array.shape, False, array.reshape(-1)) for array in arrays))
        for name, arrays in weights().items()
    ]


_PARTS: Final = (
    *((f"cells{level}", ORIENTATIONS * GRID * GRID) for level in range(len(_LEVELS))),
    ("colours", 2 * GRID * GRID),
)
"""Blobs that make up a descriptor, and their sizes."""


def prototxt() -> str:
    """The net's definition."""
    layers = [
        _layer("data", "Input", (), input_param={"shape": {"dim": [1, 3, SIZE, SIZE]}}),
        _conv("luminance", "data", 1, 1),
        _conv("opponents", "data", 2, 1),
        _average("colours", "opponents", SIZE // GRID),
    ]
    image = "luminance"
    for level, (stride, cell) in enumerate(_LEVELS):
        if level:
            layers.append(_average(f"level{level}", image, 2))
            image = f"level{level}"
        layers += [
            _conv(f"gabor{level}", image, 2 * ORIENTATIONS, TAPS, stride),
            _layer(f"square{level}", "Power", (f"gabor{level}",), power_param={"power": 2}),
            _conv(f"pairs{level}", f"square{level}", ORIENTATIONS, 1),
            _layer(
                f"energy{level}",
                "Power",
                (f"pairs{level}",),
                power_param={"power": 0.5, "shift": _ENERGY_FLOOR},
            ),
            _average(f"cells{level}", f"energy{level}", cell),
        ]
    for name, _ in _PARTS:
        layers.append(_layer(f"{name}_flat", "Flatten", (name,)))
    layers += [
        _layer("envelope", "Concat", tuple(f"{name}_flat" for name, _ in _PARTS)),
        # x / |x|, in layers that Caffe 1.0 and every engine have.
        _layer("envelope_squared", "Power", ("envelope",), power_param={"power": 2}),
        _layer("squared_length", "InnerProduct", ("envelope_squared",), inner_product_param=_ip(1)),
        _layer("inverse_length", "Power", ("squared_length",), power_param={"power": -0.5, "shift": 1e-6}),
        _layer(
            "spread", "InnerProduct", ("inverse_length",), inner_product_param=_ip(sum(n for _, n in _PARTS))
        ),
        _layer(BLOB, "Eltwise", ("envelope", "spread"), eltwise_param={"operation": "PROD"}),
    ]
    return 'name: "gist"\n' + "".join(layers)


def _ip(outputs: int) -> dict[str, Any]:
    return {"num_output": outputs, "bias_term": False}


def _conv(name: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> str:
    settings = {"num_output": outputs, "kernel_size": kernel, "stride": stride, "bias_term": False}
    return _layer(name, "Convolution", (bottom,), convolution_param=settings)


def _average(name: str, bottom: str, cell: int) -> str:
    return _layer(
        name, "Pooling", (bottom,), pooling_param={"pool": "AVE", "kernel_size": cell, "stride": cell}
    )


def _layer(name: str, kind: str, bottoms: tuple[str, ...], **params: dict[str, Any]) -> str:
    lines = [f'  name: "{name}"', f'  type: "{kind}"']
    lines += [f'  bottom: "{bottom}"' for bottom in bottoms]
    lines.append(f'  top: "{name}"')
    lines += [f"  {param} {_block(settings)}" for param, settings in params.items()]
    return "layer {\n" + "\n".join(lines) + "\n}\n"


def _block(settings: dict[str, Any]) -> str:
    parts = []
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                parts.append(f"{key} {_block(one)}")
            else:
                parts.append(f"{key}: {str(one).lower() if isinstance(one, bool) else one}")
    return "{ " + " ".join(parts) + " }"
