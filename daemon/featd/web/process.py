"""The page's process: listens, serves, and ends when it is told to. Nothing that happens here disturbs a worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from featd import logs
from featd.catalog import connect
from featd.errors import FeatdError, reason
from featd.processes.link import ChildLink
from featd.processes.records import Ready
from featd.processes.signals import StopFlag
from featd.web.app import Page
from featd.web.plan import WebPlan

log = logs.get("web")

NICE = 10
BACKLOG = 64
MOST_CONNECTIONS = 128
SILENT_MS = 20_000
"""A client that takes no data for so long is cut off by the kernel, whatever is written to it meanwhile."""
BEAT_SECONDS = 60.0
BEAT_EVERY_SECONDS = 0.25
REQUEST_SECONDS = 20.0
"""A connection on which no request has come whole for so long is closed: its place may be another's."""
GRACE_SECONDS = 2
"""For answers under way, when it stops."""


def listen(address: str, port: int) -> socket.socket:
    """FeatdError where the page cannot listen there: the supervisor tries again, ever more slowly."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these two.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        made.bind((address, port))
    except OSError as error:
        made.close()
        ways = {
            errno.EADDRINUSE: "another program has this port: stop it, or choose another one in web.listen",
            errno.EADDRNOTAVAIL: "this machine does not have this address: see web.listen",
            errno.EACCES: "ports below 1024 are root's: choose another one in web.listen",
        }
        why = ways.get(error.errno or 0, reason(error))
        raise FeatdError(f"the page cannot listen at {address}, port {port}: {why}") from None
    made.listen(BACKLOG)
    made.setblocking(False)
    return made


class Connection(H11Protocol):
    """A client's. uvicorn itself waits for ever for one that sends nothing, or byte by byte."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > 2 * MOST_CONNECTIONS:  # half of them are told that they are too many
            transport.abort()
        self._look_again(None)

    def _look_again(self, answered: Any) -> None:
        self._looks = self.loop.call_later(REQUEST_SECONDS, self._look, answered)

    def _look(self, answered: Any) -> None:
        """`answered`: the request that was the last one before."""
        if self.cycle is answered and (answered is None or answered.response_complete):
            self.transport.close()
        else:
            self._look_again(self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looks.cancel()
        super().connection_lost(exc)


def server(page: Page) -> uvicorn.Server:
    """What serves it."""
    config = uvicorn.Config(
        page.app(),
        http=Connection,
        log_config=None,
        access_log=False,  # tokens stand in addresses
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def run(link: ChildLink, plan: WebPlan) -> int:
    """The child's life."""
    stop = StopFlag()  # for a signal before the server has its own handlers, and again after that
    logs.take_in("uvicorn", "asyncio")
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.closing(listen(plan.address, plan.port)) as listening:
        page = Page(connect.open_catalog(plan.catalog_url, plan.watched.lease_seconds), plan)
        if not stop.stopping:
            asyncio.run(_serve(page, listening, link))
    return 0


async def _serve(page: Page, listening: socket.socket, link: ChildLink) -> None:
    serving = server(page)
    beating = asyncio.create_task(_beat(link, page, serving))
    link.report(Ready())
    address, port = listening.getsockname()[:2]
    log.info("page_open", f"the page is at http://{f'[{address}]' if ':' in address else address}:{port}/")
    try:
        await serving.serve(sockets=[listening])
    finally:
        beating.cancel()
        await page.close()


async def _beat(link: ChildLink, page: Page, serving: uvicorn.Server) -> None:
    while True:
        link.beat(BEAT_SECONDS)
        if serving.should_exit:
            page.stream.close()
        await asyncio.sleep(BEAT_EVERY_SECONDS)
