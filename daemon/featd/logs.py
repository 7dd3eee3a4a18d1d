"""Log lines: an event name plus fields, one record per line whatever a file is called.

log = logs.get("worker")
log.info("sealed", "a shard is on disk; its rows are done", shard=name, rows=n)
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, TextIO

from featd.clock import utcnow


class Logger:
    """A named logger whose records carry an event and fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"featd.{name}")

    def _log(self, level: int, event: str, message: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(
                level,
                message,
                extra={"event": event, "fields": fields},
                exc_info=fields.pop("exc_info", None),
            )

    def debug(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, message, fields)

    def info(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, message, fields)


def get(name: str) -> Logger:
    """The logger of one room of the house."""
    return Logger(name)


class LineFormatter(logging.Formatter):
    """`2026-11-24T10:00:00Z INFO worker sealed: a shard is on disk shard="..." rows=4096`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        event = getattr(record, "event", record.name)
        parts = [
            utcnow().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            record.levelname,
            f"{record.name.removeprefix('featd.')}[{os.getpid()}]",
            f"{event}:",
            _one_line(record.getMessage()),
            *(f"{key}={_value(value)}" for key, value in fields.items()),
        ]
        if record.exc_info:
            parts.append("traceback=" + json.dumps(self.formatException(record.exc_info)))
        return " ".join(parts)


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, (int, float)) or value is None:
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=not str(value).isprintable())


def setup(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every featd record to `stream` (standard error), one line each."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger("featd")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
