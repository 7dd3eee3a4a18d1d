"""What native libraries print to descriptor 2 while they decode: libjpeg's only sign of a partial picture.

In a decoder process descriptor 2 is a memory file already. Any other process redirects descriptor 2 to a memory file
for one call, which only one thread at a time may do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

MOST_BYTES = 16_384


@contextlib.contextmanager
def native_stderr(own: int | None = None) -> Iterator[list[str]]:
    """Yields a list; at the end of the context, what was written to descriptor 2 is in it and nowhere else.

    `own`: the memory file that is descriptor 2 of this process already; None redirects descriptor 2.
    """
    heard: list[str] = []
    with _redirected() if own is None else contextlib.nullcontext(own) as file:
        start = os.fstat(file).st_size
        try:
            yield heard
        finally:
            if os.fstat(file).st_size > start:
                heard.append(os.pread(file, MOST_BYTES, start).decode("utf-8", "replace"))
                os.ftruncate(file, start)  # these are not last words of the next image


@contextlib.contextmanager
def _redirected() -> Iterator[int]:
    """A memory file that is descriptor 2 inside."""
    file, saved = os.memfd_create("featd-stderr", os.MFD_CLOEXEC), os.dup(2)
    os.dup2(file, 2)
    try:
        yield file
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(file)
