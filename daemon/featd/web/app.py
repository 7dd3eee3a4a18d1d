"""The addresses of the page, and what answers at each."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from featd.report import status
from featd.web import static, templates
from featd.web.guard import Guard
from featd.web.live import Live
from featd.web.plan import WebPlan


class Page:
    """What is kept between requests."""

    def __init__(self, catalog: sa.Engine, plan: WebPlan) -> None:
        self._catalog = catalog
        self._plan = plan
        self._live = Live(catalog, partial(status.look, catalog, plan.watched))

    def app(self) -> ASGIApp:
        """The application, behind its guard."""
        routes = [
            Route("/", self.front),
            Route("/api/status", self.api_status),
            # Also here: /metrics.
            Route("/static/{name}", static.answer),
        ]
        return Guard(Starlette(routes=routes), self._plan.token)

    async def front(self, request: Request) -> Response:
        look = await self._live.look()
        return templates.page("page.html", look=look)

    async def api_status(self, request: Request) -> Response:
        """The document of `featd status --json`."""
        look = await self._live.look()
        if look.report is None or look.trouble is not None:
            return _json({"error": look.trouble}, 503)
        return _json(status.as_json(look.report))


def _json(document: Any, code: int = 200) -> Response:
    return Response(json.dumps(document) + "\n", code, media_type="application/json")
