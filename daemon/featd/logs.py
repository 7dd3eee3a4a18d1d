"""Log records: an event name, a message and fields. One record per line, whatever file names contain.

log = logs.get("worker")
log.info("shard_sealed", "shard sealed and its images recorded", shard=name, rows=n)

On a terminal or in a file a record is a line of text; under systemd it goes to the journal with its fields
(`journalctl FEATD_EVENT=shard_sealed`); on request it is a JSON object. Too many records of one event are counted
instead of written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from typing import Any, TextIO

from featd import clock

BURST = 50
"""The number of records of one event that are written within WINDOW_SECONDS; further ones are counted."""
WINDOW_SECONDS = 10.0
JOURNAL = "/run/systemd/journal/socket"
JOURNAL_BYTES = 64 * 1024
"""The limit for one field, which fits into a datagram."""

_level = "info"
_forced: str | None = None
_format = "auto"


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
    """The logger of one part of featd."""
    return Logger(name)


def configure(level: str, format: str) -> None:
    """Set what `setup` does from now on, in this process and its children, from the [log] section."""
    global _level, _format
    _level, _format = level, format


def force(level: str | None) -> None:
    """From now on `setup` uses this level, whatever the configuration and its caller say: "debug", or "warning" where
    they want less severe records; None: no more."""
    global _forced
    _forced = level


def is_forced() -> bool:
    """Whether the command line has asked for more of the log, or for less."""
    return _forced is not None


def setup(level: str | None = None, stream: TextIO | None = None) -> None:
    """Send all records to `stream` (standard error), or to the journal."""
    stream = stream or sys.stderr
    handler: logging.Handler
    if _format == "journal" or (_format == "auto" and goes_to_journal(stream)):
        handler = JournalHandler(stream)
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter() if _format == "json" else LineFormatter())
    handler.addFilter(Flood())
    root = logging.getLogger("featd")
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, JournalHandler):
            old.close()
    root.addHandler(handler)
    wanted = _number(level or _level)
    if _forced is not None:
        wanted = _number(_forced) if _forced == "debug" else max(wanted, _number(_forced))
    root.setLevel(wanted)
    root.propagate = False


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def take_in(*libraries: str) -> None:
    """From now on, errors that these libraries log are records, too, and no lines of another form. Not their warnings,
    which whoever sends nonsense could cause by the thousand."""
    for library in libraries:
        logger = logging.getLogger(library)
        logger.parent = logging.getLogger("featd")
        logger.setLevel(logging.ERROR)


def goes_to_journal(stream: TextIO) -> bool:
    """Whether `stream` is the connection to the journal that systemd has made for this service."""
    with contextlib.suppress(OSError, ValueError):
        is_at = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{is_at.st_dev}:{is_at.st_ino}"
    return False


class LineFormatter(logging.Formatter):
    """`2026-11-24T10:00:00.000Z INFO worker[42] shard_sealed: shard sealed ... shard="..." done=4096`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            _moment(),
            record.levelname,
            f"{_room(record)}[{os.getpid()}]",
            f"{_event(record)}:",
            _one_line(record.getMessage()),
            *(f"{key}={_value(value)}" for key, value in _fields(record).items()),
        ]
        if record.exc_info:
            parts.append("traceback=" + json.dumps(self.formatException(record.exc_info)))
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: the fields beside time, level, logger, pid, event and message."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            **_fields(record),
            "time": _moment(),
            "level": record.levelname.lower(),
            "logger": _room(record),
            "pid": os.getpid(),
            "event": _event(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class JournalHandler(logging.Handler):
    """systemd's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram of fields per record.

    If the journal cannot be reached, the record is a line of text on `stream`.
    """

    def __init__(self, stream: TextIO, address: str = JOURNAL) -> None:
        super().__init__()
        self._address = address
        self._fallback = logging.StreamHandler(stream)
        self._fallback.setFormatter(LineFormatter())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "MESSAGE": self._message(record),
            "PRIORITY": {"DEBUG": 7, "INFO": 6, "WARNING": 4}.get(record.levelname, 3),
            "SYSLOG_IDENTIFIER": "featd",
            "FEATD_LOGGER": _room(record),
            "FEATD_EVENT": _event(record),
            **{f"FEATD_{key.upper()}": value for key, value in _fields(record).items()},
        }
        if record.exc_info:
            fields["FEATD_TRACEBACK"] = logging.Formatter().formatException(record.exc_info)
        try:
            self._socket.sendto(b"".join(_journal_field(*field) for field in fields.items()), self._address)
        except OSError:
            self._fallback.handle(record)

    def _message(self, record: logging.LogRecord) -> str:
        """The message that `journalctl` shows, with shortened fields."""
        fields = " ".join(f"{key}={_value(value)[:200]}" for key, value in _fields(record).items())
        return f"{_event(record)}: {_one_line(record.getMessage())} {fields}".rstrip()

    def close(self) -> None:
        self._socket.close()
        super().close()


class Flood(logging.Filter):
    """Passes BURST records of one event per window; the first of the next window says how many were held back."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, _event(record)), clock.monotonic()
        since, seen = self._windows.get(key, (now, 0))
        if now - since >= WINDOW_SECONDS:
            if seen > BURST:
                record.fields = {**_fields(record), "held_back": seen - BURST}
            since, seen = now, 0
        self._windows[key] = (since, seen + 1)
        if seen == BURST - 1:
            record.fields = {
                **_fields(record),
                "note": f"more of these are held back for {WINDOW_SECONDS:g} s",
            }
        return seen < BURST


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _event(record: logging.LogRecord) -> str:
    return str(getattr(record, "event", record.name))


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix("featd.")


def _moment() -> str:
    return clock.utcnow().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, (int, float)) or value is None:
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=not str(value).isprintable())


def _journal_field(name: str, value: Any) -> bytes:
    """`NAME=value`, or with a length where the value has more than one line."""
    data = str(value).encode(errors="backslashreplace")[:JOURNAL_BYTES]
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
