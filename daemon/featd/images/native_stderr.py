"""What native libraries print to descriptor 2 while they decode: libjpeg's only sign of a partial picture.

In a decoder process descriptor 2 is a memory file already. Any other process redirects descriptor 2 to a memory file
for one call, which only one thread at a time may do.
"""

from __future__ import annotations

import os
from types import TracebackType

MOST_BYTES = 16_384


class NativeStderr:
    """A context: what is written to descriptor 2 inside it is in `heard` afterwards, and nowhere else."""

    def __init__(self, own: int | None = None) -> None:
        """`own`: the memory file that is descriptor 2 of this process already; None redirects descriptor 2."""
        self._own = own
        self._saved = -1
        self._file = -1
        self._start = 0
        self.heard = ""

    def __enter__(self) -> NativeStderr:
        self.heard = ""
        if self._own is not None:
            self._file = self._own
            self._start = os.fstat(self._file).st_size
            return self
        self._file = os.memfd_create("featd-stderr", os.MFD_CLOEXEC)
        self._start = 0
        self._saved = os.dup(2)
        os.dup2(self._file, 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._own is None:
            os.dup2(self._saved, 2)
            os.close(self._saved)
        if os.fstat(self._file).st_size > self._start:
            self.heard = os.pread(self._file, MOST_BYTES, self._start).decode("utf-8", "replace")
            if self._own is not None:
                os.ftruncate(self._file, self._start)  # these are not last words of the next image
        if self._own is None:
            os.close(self._file)
