"""A connection to PostgreSQL that never waits for ever: a pooler or balancer may acknowledge and never answer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg

from featd import clock


class BoundedConnection(psycopg.Connection[Any]):
    """Where an answer takes longer than `limit_seconds`, the connection is closed and OperationalError raised."""

    limit_seconds: float | None = None

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        if self.limit_seconds is None:
            return super().wait(gen, *arguments, **options)
        try:
            return super().wait(_within(gen, self.limit_seconds), *arguments, **options)
        except NoAnswerError:
            self.pgconn.finish()  # else a rollback would wait as long again
            raise


class NoAnswerError(psycopg.OperationalError):
    """The server acknowledges what it is sent, but does not answer."""


def _within(gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """What psycopg waits for, until `seconds` have passed; it looks at least every tenth of a second."""
    deadline = clock.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and clock.monotonic() > deadline:
                raise NoAnswerError(f"the server did not answer within {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value
