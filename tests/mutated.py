"""Files that were changed at random, by seed; and for how long to go on with it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator


def mutated_bytes(raw: bytes, dice: random.Random) -> bytes:
    """Flipped, cut, doubled, zeroed or moved bytes; the beginning, where the structure is, more often."""
    data = bytearray(raw)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at = dice.randrange(min(len(data), 400) if dice.random() < 0.5 else len(data))
        end = min(len(data), at + dice.choice([1, 2, 8, 100]))
        kind = dice.randrange(6)
        if kind <= 1:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = bytes(end - at)
        else:
            return bytes(data[: at + 1])
    return bytes(data)


# Read now: a test's environment has none of featd's variables.
SECONDS = float(os.environ.get("FEATD_FUZZ_SECONDS", "300"))
SEED = os.environ.get("FEATD_SEED")


def seeds_for_a_while(step: int) -> Iterator[int]:
    """Seeds from FEATD_SEED on (standard: the time), until FEATD_FUZZ_SECONDS (standard: 300) are over. By hand, for
    hours: `FEATD_FUZZ_SECONDS=7200 script/test -m long -s FILE`."""
    until = time.monotonic() + SECONDS
    seed = int(SEED or time.time_ns() // 10**9 * 1000)
    print(f"from seed {seed}")
    while time.monotonic() < until:
        yield seed
        seed += step
