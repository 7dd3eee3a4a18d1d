"""Built-in pictures, computed, with which a worker times and checks its engine.

They are made with integer arithmetic only, so that they are the same on every platform. Do not change them: that
would invalidate every stored golden vector.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_HEIGHT, _WIDTH = 240, 320

Picture = npt.NDArray[np.uint8]


def golden_pictures() -> list[Picture]:
    """Eight pictures, uint8 (240, 320, 3), BGR: gradients, tiles, rings, stripes, noise, blocks, edges, waves.
    None is of a single colour."""
    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH].astype(np.int64)
    return [
        _stack(x * 255 // (_WIDTH - 1), y * 255 // (_HEIGHT - 1), (x + y) * 255 // (_WIDTH + _HEIGHT - 2)),
        _stack(
            ((x // 20 + y // 20) % 2) * 255, ((x // 40 + y // 40) % 2) * 200, ((x // 10 + y // 10) % 2) * 150
        ),
        _stack(_rings(x, y, 160, 120), _rings(x, y, 60, 200), _rings(x, y, 280, 30)),
        _stack((x + 2 * y) % 64 * 4, (3 * x - y) % 96 * 2, (x - y) % 32 * 8),
        _stack(_noise(x, y, 1), _noise(x, y, 2), _noise(x, y, 3)),
        _stack(_noise(x // 16, y // 16, 4), _noise(x // 16, y // 16, 5), _noise(x // 32, y // 32, 6)),
        _stack((x > 107) * 220, (y > 80) * 180, (x * 3 > y * 4) * 240),
        _stack(x * y // 7, x * x // 31 + y, y * y // 29 + x),
    ]


def _stack(*planes: npt.NDArray[np.int64]) -> Picture:
    return np.ascontiguousarray(np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8))


def _rings(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], cx: int, cy: int) -> npt.NDArray[np.int64]:
    return ((x - cx) ** 2 + (y - cy) ** 2) // 97


def _noise(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A hash of the place: multiply, fold, take the middle bits (all within 63 bits, so no overflow)."""
    mixed = (x * 73_856_093 + y * 19_349_663 + seed * 83_492_791) % 2_147_483_647
    mixed = (mixed * 48_271) % 2_147_483_647
    mixed = (mixed ^ (mixed >> 13)) * 69_621 % 2_147_483_647
    return mixed >> 9
