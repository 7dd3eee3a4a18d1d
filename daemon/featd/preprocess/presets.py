"""Presets: how published features were made, as defaults for the keys of [preprocess].

A key in the configuration overrides its preset. The fingerprint contains the values, not the preset's name.
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
    """Values for the keys of the same names. Keys that always come from the net are not here."""

    orientation: str
    resize: str
    interpolation: str
    arithmetic: str
    straight: bool
    """Without ten crops, resize to the net's input itself; otherwise to the net's default size, then crop."""
    unrounded_mean: bool
    """Use `ILSVRC_MEAN_BGR` where the net's own mean is ImageNet's in whole numbers."""


PRESETS: Final = {
    FAST: Preset("apply", "warp", "linear", "opencv", straight=False, unrounded_mean=False),
    # OpenCV 2.4, with which Caffe's published models were made, ignores EXIF.
    CAFFE_TRANSFORM: Preset("ignore", "warp", "linear", "opencv", straight=False, unrounded_mean=False),
    PYCAFFE: Preset("ignore", "warp", "linear", "skimage", straight=True, unrounded_mean=True),
}
