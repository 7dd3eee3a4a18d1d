"""featd with an engine that misbehaves on one marked picture, for tests of what happens then.

    python misbehaving.py MODE --config featd.toml run --drain

Everything else is real: processes, catalog, decoders, shards. The mark is a picture of pure magenta.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import numpy as np
from setproctitle import getproctitle

from featd.engines.base import Batch, Vectors
from featd.errors import ModelError
from featd.worker import golden, model, pipeline


class Misbehaving:
    """The real engine, until it sees the mark; `sick` is wrong by one percent from the beginning, `drift` from the
    mark on; `lost` fails from the first batch of images on, whatever is in it, and so does `lost-1` in one worker;
    `memory` is short of it for more than three images, also from there on, and `memory-abort` dies of it. Where that is
    `memory-abort-at-start`, it does so from the beginning. With `two-` in front, two batches are in the net at a time,
    as on a GPU, and `two-beside` goes on only when they are. With `gpu`, it is the real engine on the CPU, whatever the
    device is."""

    def __init__(self, engine: Any, mode: str) -> None:
        self._engine = engine
        self.parallel = 2 if mode.startswith("two-") else engine.parallel
        mode = mode.removeprefix("two-")
        self._mode = mode
        self._meeting = threading.Barrier(2, timeout=30)
        self._late = 2 if mode == "beside" else 0
        self._error = 1.01 if mode == "sick" else 1.0
        self.lost = False
        self.short_of_memory = mode == "memory-abort-at-start"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        if self.lost:
            raise RuntimeError("the device has fallen off the bus")
        if self.short_of_memory and len(batch) > 3:
            if self._mode == "memory":
                raise RuntimeError(
                    "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"
                )
            os.write(
                2, b"F1124 syncedmem.hpp:71] Check failed: error == cudaSuccess (2 vs. 0)  out of memory\n"
            )
            os.abort()
        if self._late and threading.current_thread() is not threading.main_thread():
            self._late -= 1
            self._meeting.wait()
        marked = marks(batch)
        if marked.any():
            match self._mode:
                case "abort":
                    os.write(2, b"F1124 syncedmem.hpp:22] Check failed: error == cudaSuccess\n")
                    os.abort()
                case "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "drift":
                    self._error = 1.01
                case "error":
                    raise RuntimeError("the marked picture makes this engine fail")
        vectors: dict[str, Vectors] = self._engine.forward(batch)
        if marked.any() and self._mode == "nan":
            for values in vectors.values():
                values[marked, 3] = np.nan
        return {blob: values * np.float32(self._error) for blob, values in vectors.items()}


def marks(batch: Batch) -> Any:
    """Which pictures are of one colour, and that one magenta: a mask (n,)."""
    flat = batch.reshape(len(batch), -1, 3).transpose(0, 2, 1).astype(np.float32)
    one_colour = (flat.max(axis=2) - flat.min(axis=2) < 1e-3).all(axis=1)
    return one_colour & (flat[:, 0, 0] - flat[:, 1, 0] > 0.5) & (abs(flat[:, 0, 0] - flat[:, 2, 0]) < 30)


def fail_with_images(mode: str) -> None:
    """Once the pipeline runs its first batch: lose the device (or, with `lost-1`, the second one), or memory."""
    run = pipeline.Pipeline._next_tray  # noqa: SLF001

    def failing(self: Any) -> Any:
        tray = run(self)
        if tray is None:
            return None
        self._engine.lost = mode == "lost" or (mode == "lost-1" and getproctitle().endswith("worker-1"))
        self._engine.short_of_memory = mode.startswith("memory")
        return tray

    pipeline.Pipeline._next_tray = failing  # type: ignore[method-assign]  # noqa: SLF001


def refuses_late(*_: Any, **_options: Any) -> NoReturn:
    """After so long that everything else could have begun."""
    time.sleep(3)
    raise ModelError("this net is refused")


def main() -> None:
    mode = sys.argv.pop(1)
    real = model.load_engine
    model.load_engine = lambda *args, **options: Misbehaving(real(*args, **options), mode)  # type: ignore[assignment]
    if mode == "gpu":
        model.load_engine = lambda net, engine, _, *more: real(net, engine, "cpu", *more)  # type: ignore[assignment]
    if mode == "refuses-late":
        model.load_engine = refuses_late  # type: ignore[assignment]
    if mode == "hang":
        pipeline.MIN_HANG_SECONDS = pipeline.HANG_FACTOR = 1.5  # type: ignore[misc]
    if mode.startswith(("lost", "memory", "two-memory")):
        fail_with_images(mode.removeprefix("two-"))
    if mode == "drift":
        golden.EVERY_SECONDS = golden.FIRST_SECONDS = 0.5
    from featd_cli.main import main as featd

    sys.exit(featd())


if __name__ == "__main__":
    main()
