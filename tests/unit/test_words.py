"""The words of the log: one event, one meaning, and a message that names its subject."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error")


def log_calls() -> list[tuple[str, str, str]]:
    """(place, event, message as written) of each call that logs."""
    found = []
    for file in sorted((PROJECT / "daemon").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and len(node.args) >= 2 and is_log(node.func):
                event, message = node.args[:2]
                assert isinstance(event, ast.Constant), f"{file}:{node.lineno}: an event is named in place"
                found.append((f"{file.name}:{node.lineno}", str(event.value), ast.unparse(message)))
    return found


def is_log(function: ast.expr) -> bool:
    """`log.info`, `_log.info`, or a level that was chosen before, by the name `tell`."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id in ("log", "_log") and function.attr in LEVELS
    return isinstance(function, ast.Name) and function.id == "tell"


def test_the_name_of_an_event_means_one_thing() -> None:
    messages = defaultdict(set)
    for place, event, message in log_calls():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", event), f"{place}: {event}: a subject and a verb"
        messages[event].add(message)
    assert len(messages) > 40
    assert {event: found for event, found in messages.items() if len(found) > 1} == {}


def test_a_message_begins_with_its_subject() -> None:
    for place, _, message in log_calls():
        assert not re.match(r"f?['\"](it|its|they|there)\b", message), f"{place}: {message}"
