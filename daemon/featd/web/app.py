"""The addresses of the page, and what answers at each. All of them only read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from featd import logs
from featd.errors import FeatdError, first_line
from featd.report import status
from featd.report.looking import Looking
from featd.report.measures import Measuring
from featd.web import front, images, metrics, pictures, static, templates
from featd.web.events import Events
from featd.web.front import Front
from featd.web.guard import Guard
from featd.web.live import Live
from featd.web.pictures import Thumbnails
from featd.web.plan import WebPlan

log = logs.get("web")

T = TypeVar("T")

READERS = 4
READ_SECONDS = 10.0
"""A catalog or a root that does not answer in this time is not waited for."""
NEIGHBOURS = 12
THUMBNAIL_CACHE = {"cache-control": "private, max-age=86400, immutable"}
NOTHING_CACHE = {"cache-control": "private, max-age=60"}


class Page:
    """What is kept between requests."""

    def __init__(self, catalog: sa.Engine, plan: WebPlan) -> None:
        self._catalog = catalog
        self._plan = plan
        self._host = socket.gethostname()
        self.live: Live[Front] = Live(Looking(catalog, partial(front.gather, catalog, plan.watched)))
        self.measured = Live(Measuring(catalog, plan.watched))
        self.stream = Events(self.live, self._host)
        self._thumbnails = Thumbnails()
        self._searching = asyncio.Semaphore(1)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    def app(self) -> ASGIApp:
        """The application, behind its guard."""
        routes = [
            Route("/", self.front),
            Route("/events", self.events),
            Route("/image", self.find),
            Route("/image/{id:int}", self.image),
            Route("/image/{id:int}/similar", self.similar),
            Route("/thumbnail/{id:int}", self.thumbnail),
            Route("/api/status", self.api_status),
            Route("/metrics", self.metrics),
            Route("/static/{name}", static.answer),
        ]
        errors: dict[Any, Any] = {
            HTTPException: self._refused,
            FeatdError: self._failed,
            TimeoutError: self._failed,
        }
        return Guard(Starlette(routes=routes, exception_handlers=errors), self._plan.token)

    async def close(self) -> None:
        """End what it has started. A thread that waits for the catalog ends with the process."""
        await self._thumbnails.close()
        self.live.close()
        self.measured.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._catalog.dispose()

    async def front(self, request: Request) -> Response:
        look = await self.live.look()
        parts = front.sections(look, self._host)
        return templates.page("page.html", host=self._host, tone=front.tone(look), sections=parts)

    async def events(self, request: Request) -> Response:
        return self.stream.answer()

    async def api_status(self, request: Request) -> Response:
        """The document of `featd status --json`."""
        look = await self.live.look()
        if look.report is None or look.trouble is not None:
            return _json({"error": look.trouble}, 503)
        return _json(status.as_json(look.report.report))

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        look = await self.measured.look()
        measured = look.report if look.trouble is None else None
        return Response(metrics.exposition(measured), media_type=metrics.CONTENT_TYPE)

    async def find(self, request: Request) -> Response:
        """An image by its path; where there is none, those whose paths begin like it."""
        asked = request.query_params.get("path", "").strip()[: images.MOST_CHARS]
        found = await self._read(images.find, self._catalog, self._plan.watched, asked)
        if len(found.exact) == 1:
            return RedirectResponse(f"/image/{found.exact[0].id}", 303)
        code = 200 if found.exact or found.beginning else 404
        return templates.page("find.html", code, host=self._host, asked=asked, found=found)

    async def image(self, request: Request) -> Response:
        """What `featd explain` says of an image."""
        told = await self._read(images.explain, self._catalog, self._plan.watched, request.path_params["id"])
        if told is None:
            raise HTTPException(404, "The catalog has no such image.")
        return templates.page("image.html", host=self._host, told=told, similar=None, error="")

    async def similar(self, request: Request) -> Response:
        """The same, with the image's neighbours."""
        image_id = request.path_params["id"]
        told = await self._read(images.explain, self._catalog, self._plan.watched, image_id)
        if told is None:
            raise HTTPException(404, "The catalog has no such image.")
        async with self._searching:
            said = await pictures.neighbours(
                self._plan.catalog_url, str(self._plan.watched.store.path), image_id, NEIGHBOURS
            )
        near = await self._read(images.neighbours, self._catalog, said.get("neighbours", []))
        error = said.get("error", "")
        return templates.page("image.html", host=self._host, told=told, similar=near, error=error)

    async def thumbnail(self, request: Request) -> Response:
        """A small JPEG of an image of the catalog; a placeholder where there is none."""
        found = await self._read(
            images.readable, self._catalog, self._plan.watched, request.path_params["id"]
        )
        made = await self._thumbnails.of(*found) if found is not None else b""
        if made:
            return Response(made, media_type="image/jpeg", headers=THUMBNAIL_CACHE)
        return static.file("no-picture.svg", NOTHING_CACHE)

    async def _read(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what reads the catalog or a root in a thread. TimeoutError; FeatdError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(READ_SECONDS):
            return await loop.run_in_executor(self._readers, work, *arguments)

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        answer = templates.page("error.html", error.status_code, host=self._host, message=error.detail)
        answer.headers.update(error.headers or {})  # Allow, which goes with 405
        return answer

    async def _failed(self, request: Request, error: Exception) -> Response:
        told = first_line(error) or "The catalog or a root does not answer: try again later."
        return templates.page("error.html", 503, host=self._host, message=told)


def _json(document: Any, code: int = 200) -> Response:
    return Response(json.dumps(document) + "\n", code, media_type="application/json")
