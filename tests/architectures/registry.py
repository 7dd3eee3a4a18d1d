"""All published nets by their keys, and which of them every run of the tests compares."""

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
QUICK = frozenset(
    {
        *(net.key for net in small.NETS), "NIN CIFAR-10 V1", "NIN CIFAR-10 V0", "DenseNet-40 CIFAR", "SqueezeNet 1.1",
        "MobileNet 0.5", "ShuffleNet", "MTCNN P-Net", "MTCNN R-Net", "MTCNN O-Net", "Vanilla landmarks", "SRCNN",
        "FSRCNN",
        # One of each large family
        "CaffeNet V1", "GoogLeNet", "ResNet-50", "Inception-BN", "MobileNet v2", "LightCNN A", "Tiny YOLO",
    }
)  # fmt: skip
"""Nets that every run of the tests compares; `script/test --long` compares all."""
