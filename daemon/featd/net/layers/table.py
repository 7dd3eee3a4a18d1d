"""All layer types that featd knows. Importing the families fills the registry."""

from __future__ import annotations

from featd.net.layers import combine, convolution, inner_product, neuron, normalize, pooling, reshape
from featd.net.layers.registry import TYPES

FAMILIES = (combine, convolution, inner_product, neuron, normalize, pooling, reshape)

__all__ = ["FAMILIES", "TYPES"]
