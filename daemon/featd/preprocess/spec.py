"""How pixels become the net's input: a frozen spec that is stored and hashed. Applied by `apply.py`."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DEPTHS: Final = {"gray": 1, "gray_alpha": 2, "bgr": 3, "rgb": 3, "bgra": 4, "rgba": 4}
"""`preprocess.channels` -> how many there are."""


@dataclass(frozen=True, slots=True, eq=False)
class PreprocessSpec:
    """Everything that decides how pixels become the net's input. Sizes are (height, width), in pixels.

    `size`: what a picture is resized to ("warp"), or at least covers ("short_side": as small as possible with
    its proportions kept). `crop`: the net's input, cut from the center. `mean`: one value per channel, or a
    mean image float32 (C, h, w) as large as `size` or as `crop`; both in the order of `channels`.
    `arithmetic`: "opencv" resizes whole grey levels, "skimage" floats, linearly, as pycaffe does, "pillow" as Pillow
    and torchvision do, with their sizes and crops. `std`: divided by after `scale`; empty: nothing is. `crops`: "ten"
    leaves the picture at `size`, of which `featd.engines.ten_crop` makes ten of `crop`. `reduce_jpeg`: a large JPEG is
    decoded at a fraction of its size that is at least `size`.
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
    std: tuple[float, ...] = ()
    reduce_jpeg: bool = False

    @property
    def depth(self) -> int:
        """Channels of the net's input, C."""
        return DEPTHS[self.channels]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what `apply` makes, (C, height, width): one input, or with ten crops what they are cut from."""
        return (self.depth, *(self.size if self.crops == "ten" else self.crop))

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """Shape of what `apply` makes as uint8, (height, width, C)."""
        return (*self.shape[1:], self.depth)

    @property
    def whole_numbers(self) -> bool:
        """Whether resized pixels are uint8; pycaffe's are not."""
        return self.arithmetic != "skimage"

    @property
    def swaps_channels(self) -> bool:
        """Whether red and blue of decoded pixels, which are BGR, change places."""
        return self.channels in ("rgb", "rgba")

    @property
    def scales(self) -> bool:
        """Whether `factors` change anything."""
        return self.scale != 1.0 or bool(self.std)

    @property
    def decode_gray(self) -> bool:
        """Whether the decoder makes the picture grey; pycaffe does that afterwards, in floating point."""
        return self.is_gray and self.arithmetic != "skimage"

    @property
    def shortest(self) -> int | None:
        """Of a JPEG's shorter side, how many pixels the decoder must leave at least; None where it leaves all. Whatever
        way a picture is turned, none is enlarged afterwards for that."""
        return max(self.size) if self.reduce_jpeg else None

    @property
    def is_gray(self) -> bool:
        return self.channels in ("gray", "gray_alpha")

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is the picture's alpha, 255 where it has none."""
        return self.channels in ("bgra", "rgba", "gray_alpha")

    @property
    def factors(self) -> tuple[np.float32, ...]:
        """What is multiplied after the mean is subtracted, one for each channel."""
        return tuple(np.float32(self.scale / std) for std in self.std or (1.0,) * self.depth)

    @property
    def mean_after_crops(self) -> npt.NDArray[np.float32] | None:
        """The mean image (C, *crop) that is subtracted from each of ten crops, mirrored ones too, as pycaffe does;
        `apply` then leaves mean and scale to the engine. None where `apply` subtracts the mean."""
        if self.crops != "ten" or not isinstance(self.mean, np.ndarray) or self.mean.shape[1:] == self.size:
            return None
        return self.mean

    def identity(self) -> dict[str, Any]:
        """The part of the fingerprint, as JSON values. A mean image is represented by the SHA-256 of its values.

        max_pixels is not part of it: it decides which pictures are refused, not the values of vectors. Fields that
        were added later are included only where they are not at their default.
        """
        mean: Any = self.mean
        if isinstance(mean, np.ndarray):
            import hashlib  # loads OpenSSL: 4 MB that a decoder does not need

            values = np.ascontiguousarray(mean, "<f4")
            mean = {"shape": list(values.shape), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
        else:
            mean = [float(value) for value in mean]
        later = {
            "arithmetic": self.arithmetic,
            "crops": self.crops,
            "reduce_jpeg": self.reduce_jpeg,
            "std": list(self.std),
        }
        defaults = {"arithmetic": "opencv", "crops": "center", "reduce_jpeg": False, "std": []}
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

    def to_json(self) -> dict[str, Any]:
        """The whole spec as JSON values, for another process. Numbers keep every bit."""
        mean: Any = self.mean
        if isinstance(mean, np.ndarray):  # as numbers in decimal it would take 5 MB of each decoder
            values = np.ascontiguousarray(mean, "<f4")
            mean = {"shape": values.shape, "base64": base64.b64encode(values.tobytes()).decode()}
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"mean": mean}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PreprocessSpec:
        """The spec that `to_json` gave."""
        mean = fields["mean"]
        if isinstance(mean, dict):
            mean = np.frombuffer(base64.b64decode(mean["base64"]), "<f4").reshape(mean["shape"])
        else:
            mean = tuple(mean)
        pairs = {name: tuple(fields[name]) for name in ("size", "crop", "std")}
        return cls(**fields | pairs | {"mean": mean})
