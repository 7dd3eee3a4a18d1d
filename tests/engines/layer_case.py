"""A layer and its settings as a net to be compared, and the small layers that shape what goes into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from nets import layer

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Case:
    """A net whose last layer is the one looked at; its bottoms are `data` or come from `before`."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = (3, 6, 7)
    before: str = ""
    bottoms: str = "data"
    tops: str = "out"
    block: str = ""
    covers: frozenset[str] = frozenset()
    """The settings that the case is about, where they are not `settings`."""

    def text(self) -> str:
        name = self.block or f"{self.kind.lower()}_param"
        body = f"{name} {{ {written(self.settings)} }}" if self.settings else ""
        return self.before + layer("out", self.kind, self.bottoms, body, self.tops)


def written(settings: dict[str, Any]) -> str:
    """Settings in protobuf's text format."""
    words = []
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            said = str(one).lower() if isinstance(one, bool) else str(one)
            words.append(f"{name} {said}" if said.startswith("{") else f"{name}: {said}")
    return " ".join(words)


def shaped(scale: float, shift: float = 0.0, name: str = "x") -> str:
    """The picture, whose numbers are some -120 to 135, brought to another range as blob `name`."""
    return layer(name, "Power", "data", f"power_param {{ scale: {scale} shift: {shift} }}")


def some(draw: Draw, **strategies: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A value for some of the settings; the others stay at their default."""
    return {name: draw(value) for name, value in strategies.items() if draw(st.booleans())}


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


small = st.integers(1, 4)
flags = st.booleans()
pictures = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def parameter(name: str, dims: str) -> str:
    shape = " ".join(f"dim: {dim}" for dim in dims.split())
    return layer(name, "Parameter", "", f"parameter_param {{ shape {{ {shape} }} }}")


def reshaped(dims: str, name: str = "r", bottom: str = "data") -> str:
    shape = " ".join(f"dim: {dim}" for dim in dims.split())
    return layer(name, "Reshape", bottom, f"reshape_param {{ shape {{ {shape} }} }}")


def shape(dims: str) -> str:
    return "{ " + " ".join(f"dim: {dim}" for dim in dims.split()) + " }"
