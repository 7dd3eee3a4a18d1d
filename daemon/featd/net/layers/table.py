"""All layer types that featd knows. Importing the families fills the registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
from featd.net.upgrade import REFUSED

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

__all__ = ["FAMILIES", "TYPES", "perhaps"]


def perhaps(kind: str, known: Iterable[str] = ()) -> str:
    """A question that names the type that an unknown one may be meant to be; empty where none is like it. `known`:
    other types that exist, by which an unknown one is not a mistake."""
    names = {name.lower(): name for name in (*TYPES, *REFUSED, *known)}
    if kind in names.values():
        return ""
    near = difflib.get_close_matches(kind.lower(), names, 1, 0.8)
    return f" (did you mean {names[near[0]]}?)" if near else ""
