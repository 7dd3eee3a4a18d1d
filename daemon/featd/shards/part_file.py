"""The unfinished file as HDF5 sees it: writes go through our own descriptor, and the first error sticks.

HDF5 that met ENOSPC or EIO cannot close its file any more, keeps the descriptor for ever and hides the errno in a
message. So it never meets one: after the first failed write it writes into nothing, closes as always, and the
writer raises the kept OSError.
"""

from __future__ import annotations

import io
import os
from typing import Any


class PartFile(io.RawIOBase):
    """A file object over a descriptor that it does not own, as h5py's file-object driver wants it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._at = offset
        elif whence == os.SEEK_CUR:
            self._at += offset
        else:
            self._at = os.fstat(self._fd).st_size + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = 0
        try:
            count = os.preadv(self._fd, [buffer], self._at)
        except OSError as error:
            self.error = self.error or error
        # Behind a failed write there may be nothing to read: zeros, so that HDF5 can go on to its close.
        view = memoryview(buffer).cast("B")
        if count < len(view):
            view[count:] = bytes(len(view) - count)
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                done = 0
                while done < len(view):
                    done += os.pwrite(self._fd, view[done:], self._at + done)
            except OSError as error:
                self.error = error
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is kept back here."""

    def check(self) -> None:
        """Raise the first error there was."""
        if self.error is not None:
            raise self.error
