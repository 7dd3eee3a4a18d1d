"""All layer types that featd knows. Importing the families fills the registry."""

from __future__ import annotations

from featd.net.layers import (
    combine,
    convolution,
    forks,
    inner_product,
    move,
    neuron,
    normalize,
    pooling,
    reduce,
    reshape,
    scale,
)
from featd.net.layers.registry import TYPES

FAMILIES = (
    combine,
    convolution,
    forks,
    inner_product,
    move,
    neuron,
    normalize,
    pooling,
    reduce,
    reshape,
    scale,
)

__all__ = ["FAMILIES", "TYPES"]
