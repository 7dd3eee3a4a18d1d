"""Presets: how published features were made, as defaults for the keys of [preprocess].

A key in the configuration overrides its preset. The fingerprint contains the values, not the preset's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featd.net.net import PreprocessDefaults

FAST: Final = "fast"
CAFFE_TRANSFORM: Final = "caffe-transform"
PYCAFFE: Final = "pycaffe"
IMAGENET: Final = "imagenet"
CLIP: Final = "clip"
DINO: Final = "dino"
OF_CAFFE: Final = (CAFFE_TRANSFORM, PYCAFFE)

ILSVRC_MEAN_BGR: Final = (104.00698793, 116.66876762, 122.67891434)
"""What `np.load("ilsvrc_2012_mean.npy").mean(1).mean(1)` gives: the mean of Caffe's notebooks and scripts."""

# The authors' numbers are for pixels from 0 to 1: these are 255 times as large.
_TORCHVISION: Final = PreprocessDefaults(
    (256, 256), "rgb", (123.675, 116.28, 103.53), 1.0, (58.395, 57.12, 57.375)
)
"""0.485, 0.456, 0.406 and 0.229, 0.224, 0.225: torchvision, transforms/_presets.py (ImageClassification), with the
linear resize of ResNet's weights; with a cubic one, DINO's eval_knn.py and DINOv2's data/transforms.py."""
_CLIP: Final = PreprocessDefaults(
    (224, 224), "rgb", (122.7709383, 116.7460125, 104.09373615), 1.0, (68.5005327, 66.6321579, 70.32316305)
)
"""0.48145466, 0.4578275, 0.40821073 and 0.26862954, 0.26130258, 0.27577711: OpenAI's clip/clip.py (_transform)."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for the keys of the same names. Keys that always come from the net are not here."""

    orientation: str
    resize: str
    interpolation: str
    arithmetic: str
    straight: bool
    """Without ten crops, resize to the net's input itself; otherwise to the net's default size, then crop."""
    unrounded_mean: bool = False
    """Use `ILSVRC_MEAN_BGR` where the net's own mean is ImageNet's in whole numbers."""
    values: PreprocessDefaults | None = None
    """In the place of the net's own values: for colours."""
    crop: int | None = None
    """The input, height and width, of a net that takes any, where nobody names one."""


PRESETS: Final = {
    FAST: Preset("apply", "warp", "linear", "opencv", straight=False),
    # OpenCV 2.4, with which Caffe's published models were made, ignores EXIF.
    CAFFE_TRANSFORM: Preset("ignore", "warp", "linear", "opencv", straight=False),
    # torchvision, and Pillow before it, ignore EXIF too.
    IMAGENET: Preset(
        "ignore", "short_side", "linear", "pillow", straight=False, values=_TORCHVISION, crop=224
    ),
    CLIP: Preset("ignore", "short_side", "cubic", "pillow", straight=True, values=_CLIP, crop=224),
    DINO: Preset("ignore", "short_side", "cubic", "pillow", straight=False, values=_TORCHVISION, crop=224),
    PYCAFFE: Preset("ignore", "warp", "linear", "skimage", straight=True, unrounded_mean=True),
}
