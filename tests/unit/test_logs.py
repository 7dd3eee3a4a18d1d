"""One record is one line, whatever a file is called."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from featd import clock, logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.setup(stream=stream)
    yield stream
    logs.configure("info", "auto")
    logs.setup()


def test_a_record_is_an_event_a_message_and_fields(stream: io.StringIO) -> None:
    logs.get("worker").info("sealed", "its images are done", shard="a b.h5", rows=3, rate=1.5)
    (line,) = stream.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO worker\[\d+\] sealed: its images are done ", line)
    assert line.endswith('shard="a b.h5" rows=3 rate=1.5')


HOSTILE = ["x\ny", "x\r2026-11-24 ERROR forged", "\x1b]0;title\x07", "\u202egpj.x", 'quote"s', "\udcff"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_cannot_forge_lines_or_steer_terminals(stream: io.StringIO, name: str) -> None:
    logs.get("ingest").warning("odd", f"a message with {name}", path=name)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert json.loads(line.partition("path=")[2]) == name


def test_a_traceback_stays_on_the_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logs.get("x").error("broken", "going on", exc_info=True)
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: first" in line


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_json_is_one_object_a_line(stream: io.StringIO, name: str) -> None:
    logs.configure("info", "json")
    logs.setup(stream=stream)
    logs.get("ingest").warning("odd", "a message", path=name, rows=3)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record["path"] == name
    assert (record["event"], record["level"], record["logger"], record["rows"]) == (
        "odd",
        "warning",
        "ingest",
        3,
    )


def test_the_level_is_the_configurations(stream: io.StringIO) -> None:
    logs.configure("warning", "text")
    logs.setup(stream=stream)
    logs.get("x").info("a", "not shown")
    logs.get("x").warning("b", "shown")
    assert [line.split()[3] for line in stream.getvalue().splitlines()] == ["b:"]


def test_an_event_that_floods_is_cut_short_and_counted(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    log = logs.get("worker")
    for at in range(10_000):
        log.warning("failed", "this image is given up", image=at)
    log.warning("other", "another event is not held back")
    lines = stream.getvalue().splitlines()
    assert len(lines) == logs.BURST + 1
    assert "held back for 10 s" in lines[-2]
    now += logs.WINDOW_SECONDS
    log.warning("failed", "this image is given up", image=1)
    assert f"held_back={10_000 - logs.BURST}" in stream.getvalue().splitlines()[-1]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "journal"))
        one.setblocking(False)
        yield one


def parse(datagram: bytes) -> dict[str, str]:
    """The native protocol, read as journald reads it."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if not is_short:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[name.decode()] = value.decode()
        datagram = rest
    return found


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_the_journal_gets_fields(
    journal: socket.socket, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(logs.JournalHandler.__init__, "__defaults__", (journal.getsockname(),))
    logs.configure("info", "journal")
    logs.setup(stream=stream)
    logs.get("worker").error("failed", "this image is given up", image=name, rows=7)
    fields = parse(journal.recv(1 << 16))
    expected = name.encode(errors="backslashreplace").decode()
    assert fields["FEATD_IMAGE"] == expected
    assert {key: fields[key] for key in ("FEATD_EVENT", "FEATD_ROWS", "PRIORITY", "FEATD_LOGGER")} == {
        "FEATD_EVENT": "failed",
        "FEATD_ROWS": "7",
        "PRIORITY": "3",
        "FEATD_LOGGER": "worker",
    }
    assert fields["MESSAGE"].isprintable()
    assert stream.getvalue() == ""


def test_without_a_journal_it_is_a_line(
    stream: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.JournalHandler.__init__, "__defaults__", (str(tmp_path / "none"),))
    logs.configure("info", "journal")
    logs.setup(stream=stream)
    logs.get("worker").info("sealed", "its images are done")
    assert "sealed: its images are done" in stream.getvalue()


def test_the_journal_is_known_by_what_systemd_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        assert not logs.goes_to_journal(stream)
        at = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{at.st_dev}:{at.st_ino}")
        assert logs.goes_to_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{at.st_dev}:{at.st_ino + 1}")
        assert not logs.goes_to_journal(stream)


def test_what_a_library_logs_is_a_record(stream: io.StringIO) -> None:
    logs.take_in("library")
    logging.getLogger("library.error").warning("a client sent nonsense")
    logging.getLogger("library.error").error("a fault\nin two lines", exc_info=ValueError("x"))
    (line,) = stream.getvalue().splitlines()
    assert " ERROR library.error[" in line
    assert "ValueError: x" in line


@pytest.mark.parametrize(
    ("forced", "configured", "passed"),
    [(None, "info", "iwe"), ("warning", "info", "we"), ("warning", "error", "e"), ("debug", "error", "diwe")],
)
def test_the_command_line_wants_more_or_less(
    stream: io.StringIO, forced: str | None, configured: str, passed: str
) -> None:
    logs.force(forced)
    try:
        logs.setup(configured, stream)
        assert logs.is_forced() is (forced is not None)
        for level in ("debug", "info", "warning", "error"):
            getattr(logs.get("x"), level)("event", level[0])
        assert "".join(re.findall(r"event: (\w)", stream.getvalue())) == passed
    finally:
        logs.force(None)
