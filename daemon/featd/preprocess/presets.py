"""The ways published features were made, by name: defaults for the keys of [preprocess], nothing else.

A key that is written beats its preset, and a preset's name is not part of the fingerprint: what it does is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAST: Final = "fast"
CAFFE_TRANSFORM: Final = "caffe-transform"
PYCAFFE: Final = "pycaffe"

ILSVRC_MEAN_BGR: Final = (104.00698793, 116.66876762, 122.67891434)
"""What `np.load("ilsvrc_2012_mean.npy").mean(1).mean(1)` gives: the mean of Caffe's notebooks and scripts."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for the keys of the same names. What is the net's own in every preset is not here."""

    orientation: str
    resize: str
    interpolation: str
    arithmetic: str
    straight: bool
    """Without ten crops: resize straight to the net's input. Otherwise to the net's default size, then crop."""
    unrounded_mean: bool
    """ImageNet's mean as `ILSVRC_MEAN_BGR`, where the net's own is that mean in whole numbers."""


PRESETS: Final = {
    FAST: Preset("apply", "warp", "linear", "opencv", straight=False, unrounded_mean=False),
    # OpenCV 2.4, with which Caffe's published models were made, knew no EXIF.
    CAFFE_TRANSFORM: Preset("ignore", "warp", "linear", "opencv", straight=False, unrounded_mean=False),
    PYCAFFE: Preset("ignore", "warp", "linear", "skimage", straight=True, unrounded_mean=True),
}
