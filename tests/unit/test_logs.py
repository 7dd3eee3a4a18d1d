"""One record is one line, whatever a file is called."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pytest

from featd import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.setup(stream=stream)
    yield stream
    logs.setup()


def test_a_record_is_an_event_a_message_and_fields(stream: io.StringIO) -> None:
    logs.get("worker").info("sealed", "its images are done", shard="a b.h5", rows=3, rate=1.5)
    (line,) = stream.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO worker\[\d+\] sealed: its images are done ", line)
    assert line.endswith('shard="a b.h5" rows=3 rate=1.5')


HOSTILE = ["x\ny", "x\r2026-11-24 ERROR forged", "\x1b]0;title\x07", "\u202egpj.x", 'quote"s', "\udcff"]


@pytest.mark.parametrize("name", HOSTILE)
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
