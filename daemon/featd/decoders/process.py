"""One decoder process: pulls tasks, reads, hashes, decodes and preprocesses into shared memory, answers.

Run as `python -m featd.decoders.process` by the pool, never forked: the worker may have an engine's threads. It
ignores TERM, INT and HUP and ends when its requests end or its parent dies. Expendable by design: a picture that
kills it costs one process, its address space is bounded, and the kernel takes it before the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from featd.clock import monotonic
from featd.decoders.wire import (
    PACKET_BYTES,
    Decoded,
    DecodeTask,
    NotDecoded,
    Result,
    Setup,
    Unchanged,
    clean,
    pack_answer,
    unpack_task,
)
from featd.errors import ImageError
from featd.images.decode import decode
from featd.images.native_stderr import NativeStderr
from featd.images.read import ChangedError, read_image
from featd.paths import from_catalog
from featd.preprocess.apply import apply
from featd.preprocess.spec import PreprocessSpec
from featd.processes.hands import Hands
from featd.roots import RootState, root_state
from featd.states import Kind

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Worst cases seen in the libraries behind OpenCV: a float RGBA TIFF in one strip holds 16 bytes a pixel, the
# picture itself 3, turning it 3 more. What a library wants beyond its pixels is in the constant.
_BYTES_PER_PIXEL = 24
_BYTES_BESIDE = 512 * 1024 * 1024


class Decoder:
    """The loop of one decoder process. `run` is `step` until the requests end."""

    def __init__(
        self,
        index: int,
        hands: Hands,
        requests: socket.socket,
        answers: socket.socket,
        setup: Setup,
        slots: npt.NDArray[np.float32],
    ) -> None:
        self.index = index
        self.hands = hands
        self.requests = requests
        self.answers = answers
        self.setup = setup
        self.slots = slots
        self.spec = PreprocessSpec.from_bytes(setup.spec)
        self.stderr = NativeStderr(own=2)

    def run(self) -> None:
        """Answer tasks until the pool has closed its end."""
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for one task and answer it; False when there will be no more."""
        packet = self.requests.recv(PACKET_BYTES)
        if not packet:
            return False
        ticket, slot, task = unpack_task(packet)
        self.hands.decoder_takes(self.index, task.image_id, monotonic(), ticket)
        answer = pack_answer(ticket, self.answer(slot, task))
        # From here the image is not what could hang us: a pool in a long forward reads its answers late.
        self.hands.decoder_answers(self.index)
        self.answers.send(answer)
        self.hands.decoder_drops(self.index)
        return True

    def answer(self, slot: int, task: DecodeTask) -> Result:
        """What became of one task. Never raises: this is the border around one image."""
        try:
            return self._prepare(slot, task)
        except ChangedError as error:
            return NotDecoded(
                slot, task.image_id, error.kind, clean(error.message), error.size, error.mtime_ns
            )
        except ImageError as error:
            offline = error.kind is Kind.READ_MISSING and _is_offline(task.root)
            return NotDecoded(slot, task.image_id, error.kind, clean(error.message), root_offline=offline)
        except MemoryError:
            return NotDecoded(
                slot, task.image_id, Kind.DECODE_TOO_LARGE, "out of memory: lower preprocess.max_pixels"
            )
        except Exception as error:
            message = clean(f"{type(error).__name__}: {error}")
            return NotDecoded(slot, task.image_id, Kind.DECODE_CORRUPT, message)

    def _prepare(self, slot: int, task: DecodeTask) -> Decoded | Unchanged:
        started = monotonic()
        raw = from_catalog(task.path)
        # Opened anew for each image (4 microseconds): a descriptor kept would pin the mount, and go on
        # showing the old tree after the disk came back.
        try:
            root_fd = os.open(task.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # Only a root that is not there makes its files missing; any other error is one of reading.
            kind = Kind.READ_MISSING if error.errno in (errno.ENOENT, errno.ENOTDIR) else Kind.READ_IO
            raise ImageError(
                kind, f"its root {task.root} cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        try:
            image = read_image(
                root_fd,
                raw,
                task.size,
                task.mtime_ns,
                follow_symlinks=self.setup.roots[task.root],
                max_bytes=self.setup.max_bytes,
            )
        finally:
            os.close(root_fd)
        if image.content == task.known_content:
            return Unchanged(slot, task.image_id, image.content)
        spec = self.spec
        pixels = decode(
            image.data,
            max_pixels=spec.max_pixels,
            gray=spec.decode_gray,
            orientation=spec.orientation,
            stderr=self.stderr,
        )
        apply(pixels, spec, self.slots[slot])
        return Decoded(slot, task.image_id, image.content, monotonic() - started)


def _is_offline(root: str) -> bool:
    return root_state(Path(root)) is not RootState.ONLINE


def _settle_in(parent: int) -> None:
    """Signals, death with the parent, and what the kernel should think of us."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)  # the pool blocked them until we could ignore them
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the prctl
        sys.exit(0)
    with contextlib.suppress(OSError):  # a sandbox may hide it; it is only a preference
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable(2)
    cv2.setNumThreads(1)


def _bound_memory(max_pixels: int, max_bytes: int) -> None:
    """Limit this process's address space: what it has now, plus the largest picture allowed."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + max_pixels * _BYTES_PER_PIXEL + max_bytes + _BYTES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))


def main(argv: Sequence[str] | None = None) -> None:
    """Child main: the descriptors are inherited, the rest is in the setup file."""
    parser = argparse.ArgumentParser(prog="featd.decoders.process", allow_abbrev=False)
    for name in ("requests", "answers", "setup", "slots", "index", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--hands", type=Path, required=True)
    given = parser.parse_args(argv)
    _settle_in(given.parent)
    setup = Setup.from_bytes(os.pread(given.setup, os.fstat(given.setup).st_size, 0))
    os.close(given.setup)
    slots_bytes = int(np.prod(setup.shape, dtype=np.int64)) * 4
    slots = np.frombuffer(mmap.mmap(given.slots, slots_bytes), np.float32).reshape(setup.shape)
    os.close(given.slots)
    with Hands.open(given.hands) as hands:
        decoder = Decoder(
            given.index,
            hands,
            socket.socket(fileno=given.requests),
            socket.socket(fileno=given.answers),
            setup,
            slots,
        )
        _bound_memory(decoder.spec.max_pixels, setup.max_bytes)
        hands.decoder_ready(given.index, os.getpid())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone: so are we
            decoder.run()


if __name__ == "__main__":
    main()
