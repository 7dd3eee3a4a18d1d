"""All published nets by their keys, and which of them a run of the tests takes."""

from __future__ import annotations

from architectures import (
    alexnet,
    densenet,
    detection,
    faces,
    googlenet,
    inception,
    mobile,
    pictures,
    resnet,
    small,
    vgg,
)
from architectures.drawing import Published

FAMILIES = (small, alexnet, vgg, googlenet, inception, resnet, densenet, mobile, faces, pictures, detection)
NETS: dict[str, Published] = {net.key: net for family in FAMILIES for net in family.NETS}
ALWAYS = frozenset(
    {
        *(net.key for net in small.NETS), "NIN CIFAR-10 V1", "NIN CIFAR-10 V0", "DenseNet-40 CIFAR", "SqueezeNet 1.1",
        "MobileNet 0.5", "ShuffleNet", "MTCNN P-Net", "MTCNN R-Net", "MTCNN O-Net", "Vanilla landmarks", "SRCNN",
        "FSRCNN",
    }
)  # fmt: skip
"""Nets that take a second or less."""
DAYS = 28
"""In how many days every net has its turn."""


def on_turn(day: int) -> list[str]:
    """The nets of a day (days are counted, whatever from). Neighbours in the registry, which are alike, never meet."""
    return [key for at, key in enumerate(NETS) if key in ALWAYS or (at + day) % DAYS == 0]


def chosen(wanted: str, day: int) -> list[str]:
    """`all`, or keys parted by commas, or where nothing is wanted those of the day."""
    if wanted == "all":
        return list(NETS)
    return [key.strip() for key in wanted.split(",")] if wanted else on_turn(day)
