"""The page, kept up to date: server-sent events with those of its sections that have changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from featd.report.looking import Look
from featd.web import front, templates
from featd.web.front import Front
from featd.web.live import Live

MOST_LISTENERS = 32
EVERY_SECONDS = 2.0
"""Also where nothing has changed: who hears nothing for long knows that featd is gone."""
RETRY_MS = 3000


class Events:
    """All who listen. Each has at most one event under way: one that reads slowly gets fewer, and one that does not
    read at all is cut off by the kernel."""

    def __init__(self, live: Live[Front], host: str) -> None:
        self.listeners = 0
        self._live = live
        self._host = host
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Let everybody's stream end."""
        self._closed.set()

    def answer(self) -> Response:
        """A stream; 503 where too many listen."""
        if self.listeners >= MOST_LISTENERS:
            return PlainTextResponse("too many pages are open\n", 503, {"retry-after": "30"})
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        self.listeners += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            sent: dict[str, str] = {}
            while True:
                look = await self._live.look()
                found = front.sections(look, self._host)
                changed = {name: html for name, html in found.items() if sent.get(name) != html}
                sent = found
                yield f"data: {json.dumps(document(look, changed))}\n\n"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), EVERY_SECONDS)
                    return
        finally:
            self.listeners -= 1


def document(look: Look[Front], sections: dict[str, str]) -> dict[str, Any]:
    """An event."""
    marked = {name: {"html": html, "mark": templates.mark(html)} for name, html in sections.items()}
    return {"tone": front.tone(look), "sections": marked}
