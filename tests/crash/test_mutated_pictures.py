"""Pictures that were changed at random: each is a picture or an error with a kind, soon, and no decoder dies of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable

import pytest

from mutated import seeds_for_a_while

SECONDS = 20
"""No picture may take longer; a decoder gets 60 in production."""
FOUND = (1795833807402,)
"""Seeds that have shown a fault."""
DECODER = f"""
import json, random, signal, sys
from collections import Counter
import numpy as np
from pictures import formats
from featd.errors import ImageError
from featd.images.decode import decode
from mutated import mutated_bytes

originals = formats()
seen = Counter()
for line in sys.stdin:
    seed = int(line)
    print(seed, file=sys.stderr, flush=True)  # the last one is the culprit
    dice = random.Random(seed)
    name = dice.choice(sorted(originals))
    data = mutated_bytes(originals[name], dice)
    gray, alpha = dice.random() < 0.3, dice.random() < 0.3
    signal.alarm({SECONDS})
    try:
        pixels = decode(data, max_pixels=4_000_000, gray=gray, alpha=alpha)
    except ImageError as error:
        seen[str(error.kind)] += 1
    else:
        channels = (1 if gray else 3) + alpha
        assert pixels.dtype == np.uint8 and pixels.size > 0, pixels.dtype
        assert (1 if pixels.ndim == 2 else pixels.shape[2]) == channels, (name, pixels.shape)
        seen["a picture"] += 1
    signal.alarm(0)
print(json.dumps(seen))
"""


def decoded(seeds: Iterable[int]) -> Counter[str]:
    """How many became a picture, or failed with which kind. AssertionError with the seed of which the decoder died."""
    result = subprocess.run(
        [sys.executable, "-c", DECODER],
        input="".join(f"{seed}\n" for seed in seeds),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert result.returncode == 0, (
        f"exit code {result.returncode}, the last words (seeds): {result.stderr[-2000:]}"
    )
    return Counter(json.loads(result.stdout))


def test_mutated_pictures() -> None:
    seen = decoded([*range(500), *FOUND])
    assert sum(seen.values()) == 500 + len(FOUND)
    assert seen["a picture"] > 20, seen
    assert {"decode.corrupt", "decode.truncated", "decode.unsupported", "decode.too_large"} <= set(seen)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_mutated_pictures_for_a_while() -> None:
    """FEATD_FUZZ_SECONDS of them; the seeds begin with FEATD_SEED."""
    total: Counter[str] = Counter()
    for first in seeds_for_a_while(2000):
        total += decoded(range(first, first + 2000))
    print(dict(total))
