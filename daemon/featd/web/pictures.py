"""Thumbnails, and the neighbours of a picture: made by processes of their own, one at a time, since a picture may kill
or hang what decodes it and vectors take memory. This process has threads, so they are started and not forked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from typing import Any

from featd import clock, logs
from featd.catalog.glance import Glimpse

log = logs.get("web")

PICTURE_SECONDS = 10.0
"""What takes longer gets no thumbnail."""
IDLE_SECONDS = 15.0
"""A decoder without work ends after so long."""
MOST_WAITING = 64
MOST_CACHED_BYTES = 16 * 1024 * 1024
NONE_SECONDS = 60.0
"""A picture of which none could be made is not tried again for so long."""
MOST_NONE = 10_000
SEARCH_SECONDS = 60.0
_LENGTH_BYTES = 4
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "ERROR"}


class Thumbnails:
    """Made when they are asked for, and kept as long as there is room. Use in one event loop."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cached_bytes = 0
        self._none: dict[tuple[int, int], float] = {}
        self._decoder: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._end: asyncio.TimerHandle | None = None

    async def of(self, image: Glimpse, root: str, follow_symlinks: bool) -> bytes:
        """A JPEG of an image beneath the folder `root`; empty where there is none, or too many are waiting."""
        key = (image.id, image.version)
        if (kept := self._kept(key)) is not None:
            return kept
        if self._waiting >= MOST_WAITING:
            return b""
        self._waiting += 1
        try:
            async with self._turn:
                if (kept := self._kept(key)) is not None:
                    return kept
                made = await self._make(image, root, follow_symlinks)
        finally:
            self._waiting -= 1
        self._keep(key, made)
        return made

    def _kept(self, key: tuple[int, int]) -> bytes | None:
        if self._none.get(key, 0.0) > clock.monotonic():
            return b""
        if (kept := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
        return kept

    def _keep(self, key: tuple[int, int], made: bytes) -> None:
        if not made:
            if len(self._none) >= MOST_NONE:
                self._none.clear()
            self._none[key] = clock.monotonic() + NONE_SECONDS
            return
        self._cache[key] = made
        self._cached_bytes += len(made) + 100
        while self._cached_bytes > MOST_CACHED_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest) + 100

    async def _make(self, image: Glimpse, root: str, follow_symlinks: bool) -> bytes:
        if self._end is not None:
            self._end.cancel()
        asked = {
            "root": root,
            "path": image.path,
            "size": image.size,
            "mtime_ns": image.mtime_ns,
            "follow": follow_symlinks,
        }
        try:
            async with asyncio.timeout(PICTURE_SECONDS):
                decoder = self._decoder = self._decoder or await _start(
                    "featd.decoders.thumbnails", stdin=PIPE
                )
                assert decoder.stdin is not None
                assert decoder.stdout is not None
                decoder.stdin.write(json.dumps(asked).encode() + b"\n")
                await decoder.stdin.drain()
                length = int.from_bytes(await decoder.stdout.readexactly(_LENGTH_BYTES))
                made = await decoder.stdout.readexactly(length)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            log.info(
                "thumbnail_failed", "a picture ended or held up the decoder of thumbnails", image=image.path
            )
            await self.close()
            return b""
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for the next one's
            raise
        self._end = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)
        return made

    def _end_idle(self) -> None:
        if self._decoder is not None and not self._turn.locked():
            decoder, self._decoder = self._decoder, None
            assert decoder.stdin is not None
            decoder.stdin.close()  # it ends by itself

    async def close(self) -> None:
        """End the decoder."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            await _kill(decoder)


async def neighbours(catalog_url: str, store: str, image_id: int, count: int) -> dict[str, Any]:
    """What `featd.search.similar` says."""
    asked = {"catalog_url": catalog_url, "store": store, "image_id": image_id, "count": count}
    process = await _start("featd.search.similar", stdin=PIPE)
    try:
        async with asyncio.timeout(SEARCH_SECONDS):
            said, _ = await process.communicate(json.dumps(asked).encode())
        document: dict[str, Any] = json.loads(said)
    except TimeoutError:
        return {"error": f"the search took more than {SEARCH_SECONDS:g} s: see `featd search`"}
    except (OSError, ValueError):
        return {"error": "the search failed: see the log of featd, and `featd search`"}
    finally:
        await _kill(process)
    return document


async def _start(module: str, stdin: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        "--parent",
        str(os.getpid()),
        stdin=stdin,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, **_ENVIRONMENT},
    )


async def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
