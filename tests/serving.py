"""The page, served in a thread of the test to whoever comes by HTTP."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from featd.catalog import connect
from featd.config import Settings
from featd.report.watched import Watched
from featd.web.app import Page
from featd.web.plan import WebPlan
from featd.web.process import listen, server
from running import wait_for


@dataclass(frozen=True)
class Answer:
    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Served:
    """Where it is. `page`: to look inside."""

    port: int
    page: Page

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """Ask for it, with headers such as host="x", authorization="y"."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host="host" in headers)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()


@contextmanager
def serving(settings: Settings, token: str = "") -> Iterator[Served]:
    """Until the context ends, and then everything that it started, too."""
    plan = WebPlan(settings.catalog.url, Watched.of(settings), "127.0.0.1", 0, token)
    listening = listen(plan.address, plan.port)
    page = Page(connect.open_catalog(plan.catalog_url), plan)
    runs = server(page)

    async def serve() -> None:
        try:
            await runs.serve(sockets=[listening])
        finally:
            await page.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page")
    thread.start()
    try:
        wait_for(lambda: runs.started or not thread.is_alive(), 30, "the server")
        yield Served(listening.getsockname()[1], page)
    finally:
        page.stream.close()
        runs.should_exit = True
        thread.join(30)
        listening.close()
        for reader in tuple(page._readers._threads):  # noqa: SLF001 - the page waits for none when it closes
            reader.join(30)
        assert not thread.is_alive()
