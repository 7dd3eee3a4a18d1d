"""Which of the two kinds of nets a path names. Imports nothing, since the configuration asks, too."""

from __future__ import annotations


def is_onnx(net: str) -> bool:
    """Whether `net` is the path of an ONNX file; else it is a definition of Caffe or a built-in net."""
    return net.lower().endswith(".onnx")
