"""The precision of a net's arithmetic: which device gives which, and how far vectors of one precision may lie apart."""

from __future__ import annotations

from typing import Any, Final

from featd.errors import ConfigError

FLOAT32: Final = "float32"
TF32: Final = "tf32"
FLOAT16: Final = "float16"

TOLERANCES: Final = {FLOAT32: 1e-3, TF32: 1e-2, FLOAT16: 1e-2}
"""Relative L2 distance between vectors of the same picture. In float32, engines agree within 3e-4 on the deepest
published nets. TF32 and float16 round to 11 bits: with random weights, vectors of float16 are up to 1e-3 from those of
float32, and may be as far from each other where a library takes another algorithm. A mistake gives about 1e-1."""


def tolerance(spec: dict[str, Any]) -> float:
    """How far vectors with this fingerprint's spec may lie apart."""
    return TOLERANCES[spec.get("precision", FLOAT32)]


def require_precision(precision: str, device: str) -> None:
    """ConfigError where vectors of this precision cannot be made on `device`. Which GPUs have TF32 is known only when
    the net is loaded."""
    if precision == FLOAT32 or device != "cpu":
        return
    raise ConfigError(
        f'model.precision: {precision!r} is for GPUs: {_ON_CPU[precision]}; write precision = "float32", or'
        ' devices = ["cuda:0"]'
    )


_ON_CPU: Final = {
    TF32: "a CPU has no TF32",
    FLOAT16: (
        "on a CPU, ONNX Runtime computes in float32 between conversions, so that vectors would be other ones than a"
        " GPU's, and take longer than those of float32"
    ),
}
