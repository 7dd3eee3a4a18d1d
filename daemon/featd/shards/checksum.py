"""The checksum of a whole file, as the catalog keeps it: also for processes that load neither HDF5 nor NumPy."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import xxhash

ALGORITHM = "xxh3_128"
_BLOCK = 1 << 20


def checksum(path: Path) -> str:
    """`xxh3_128:<hex>` of a whole file, as the catalog keeps it. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return checksum_of(fd)
    finally:
        os.close(fd)


def checksum_of(fd: int) -> str:
    """`xxh3_128:<hex>` of the whole file behind a descriptor."""
    steps = hashing(fd)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)


def hashing(fd: int) -> Generator[int, None, str]:
    """The same in steps, for who has other things to do: yields the bytes of each."""
    digest = xxhash.xxh3_128()
    # Read into again and again: a new one each time costs more than the hash.
    block = bytearray(min(_BLOCK, os.fstat(fd).st_size + 1))
    view = memoryview(block)
    at = 0
    while count := os.preadv(fd, [block], at):
        digest.update(view[:count])
        at += count
        yield count
    return f"{ALGORITHM}:{digest.hexdigest()}"
