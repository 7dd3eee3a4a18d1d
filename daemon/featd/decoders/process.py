"""A decoder process: takes tasks, reads, hashes, decodes and preprocesses pictures into shared memory, and answers.

The pool runs it as `python -m featd.decoders.process` and does not fork it, because the worker may have threads of
an engine. A decoder ignores TERM, INT and HUP, and ends when its tasks end or its parent dies. A bad picture can only
kill its decoder: the decoder's address space is limited, and when memory is short, the kernel kills the decoder first.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.clock import monotonic
from featd.crash_points import CrashPoint, crash_point
from featd.decoders.limits import bound_memory, settle_in
from featd.decoders.wire import (
    PACKET_BYTES,
    Decoded,
    Hashed,
    Result,
    RootOffline,
    Setup,
    clean,
    pack_answer,
    unpack_task,
)
from featd.errors import ImageError
from featd.images import corrections
from featd.images.decode import decode
from featd.images.read import ChangedError, read_image
from featd.paths import from_catalog
from featd.preprocess.apply import apply
from featd.processes.hands import Hands
from featd.roots import RootState, root_state
from featd.states import ClaimedImage, Correction, Failure, Kind, Unchanged


@dataclass(frozen=True, slots=True)
class Decoder:
    """The loop of a decoder process. `slots`: shared with the pool, as its setup says."""

    index: int
    hands: Hands
    tasks: socket.socket
    setup: Setup
    slots: npt.NDArray[Any]

    def run(self) -> None:
        """Answer tasks until the pool has closed its end."""
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for one task and answer it; False when there will be no more."""
        packet = self.tasks.recv(PACKET_BYTES)
        if not packet:
            return False
        ticket, slot, image = unpack_task(packet)
        self.hands.decoder_takes(self.index, image.id, monotonic(), ticket)
        crash_point(CrashPoint.DECODING)
        answer = pack_answer(ticket, self.answer(slot, image))
        crash_point(CrashPoint.DECODED)
        # A wait from here on is not the image's fault: during a long forward, the pool reads its answers late.
        self.hands.decoder_answers(self.index)
        self.tasks.send(answer)
        self.hands.decoder_drops(self.index)
        return True

    def answer(self, slot: int, image: ClaimedImage) -> Result:
        """Process one image. Never raises: an image's errors become a Failure."""
        try:
            return self.prepare(slot, image)
        except ChangedError as error:
            return Failure(image, error.kind, clean(error.message), error.size, error.mtime_ns)
        except ImageError as error:
            if (
                error.kind is Kind.READ_MISSING
                and root_state(Path(self._place(image))) is not RootState.ONLINE
            ):
                return RootOffline(image)
            return Failure(image, error.kind, clean(error.message))
        except MemoryError:
            return Failure(image, Kind.DECODE_TOO_LARGE, "out of memory: lower preprocess.max_pixels")
        except Exception as error:
            return Failure(image, Kind.DECODE_CORRUPT, clean(f"{type(error).__name__}: {error}"))

    def _place(self, image: ClaimedImage) -> str:
        """The folder of its root."""
        return self.setup.places.get(image.root, image.root)

    def prepare(self, slot: int, image: ClaimedImage) -> Decoded | Hashed | Unchanged:
        """Read, decode and preprocess into `slot`. ImageError, and whatever libraries raise."""
        # Opened for each image (4 microseconds): an open descriptor would block an unmount, and still show the old
        # tree after the disk is back.
        try:
            root_fd = os.open(self._place(image), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # Only a root that does not exist makes its files missing; any other error is a read error.
            kind = Kind.READ_MISSING if error.errno in (errno.ENOENT, errno.ENOTDIR) else Kind.READ_IO
            raise ImageError(
                kind, f"cannot open its root {self._place(image)}: {os.strerror(error.errno or 0)}"
            ) from error
        try:
            file = read_image(
                root_fd,
                from_catalog(image.path),
                image.size,
                image.mtime_ns,
                follow_symlinks=self.setup.roots[image.root],
            )
        finally:
            os.close(root_fd)
        if file.content == image.known_content and not corrections.change(file.data, image.lacks):
            return Unchanged(image, file.content)
        if image.seeks:
            return Hashed(image, file.content, corrections.changing(file.data, tuple(Correction)))
        spec = self.setup.spec
        pixels = decode(
            file.data,
            max_pixels=spec.max_pixels,
            gray=spec.decode_gray,
            alpha=spec.has_alpha,
            orientation=spec.orientation,
            shortest=spec.shortest,
            stderr=2,
        )
        apply(pixels, spec, self.slots[slot])
        return Decoded(image, file.content)


def main(argv: Sequence[str] | None = None) -> None:
    """Main function. The descriptors are inherited; everything else is in the setup file."""
    parser = argparse.ArgumentParser(prog="featd.decoders.process", allow_abbrev=False)
    for name in ("tasks", "setup", "slots", "index", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--hands", type=Path, required=True)
    given = parser.parse_args(argv)
    settle_in(given.parent)
    setup = Setup.from_bytes(os.pread(given.setup, os.fstat(given.setup).st_size, 0))
    os.close(given.setup)
    slots = np.frombuffer(mmap.mmap(given.slots, 0), setup.dtype).reshape(setup.shape)
    os.close(given.slots)
    with Hands.open(given.hands) as hands:
        decoder = Decoder(given.index, hands, socket.socket(fileno=given.tasks), setup, slots)
        bound_memory(setup.spec.max_pixels)
        hands.decoder_ready(given.index, os.getpid())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker has ended
            decoder.run()


if __name__ == "__main__":
    main()
