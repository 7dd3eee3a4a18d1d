"""What a process that decodes pictures may take, so that a bad picture can only kill that process."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
from pathlib import Path

import cv2

from featd.images.read import MAX_FILE_BYTES
from featd.processes.signals import die_with_parent

_OOM_SCORE = "500"
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# The worst case seen in the libraries behind OpenCV: a float RGBA TIFF in one strip takes 16 bytes a pixel, the picture
# itself 3, and rotating it 3 more. The second constant is for what a library needs beside the pixels.
_BYTES_PER_PIXEL = 24
_BYTES_BESIDE = 512 * 1024 * 1024


def settle_in(parent: int) -> None:
    """Set up signals, death with the parent, and the kernel's preference when memory is short."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)  # the pool has blocked them until they are ignored
    die_with_parent(parent)
    with contextlib.suppress(OSError):  # a sandbox may hide the file; it is only a preference
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable(2)
    cv2.setNumThreads(1)


def bound_memory(max_pixels: int) -> None:
    """Limit the address space of this process to what it has now, plus the largest picture allowed."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + max_pixels * _BYTES_PER_PIXEL + MAX_FILE_BYTES + _BYTES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
