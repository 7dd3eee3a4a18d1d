"""The HTML of the page. Every value is escaped; no style and no script stands in it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from featd.paths import for_terminal
from featd.recommended import named
from featd.report import words

_COMMAND = re.compile(r"`([^`]*)`")


def shown(text: object) -> str:
    """Text from outside, such as a file's name, without characters that turn or hide what is around it."""
    return for_terminal(str(text))


def sentence(text: str) -> Markup:
    """A sentence of a report: its commands, between backticks, as code."""
    parts = _COMMAND.split(named(shown(text)))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(parts)
    )


def mark(html: str) -> str:
    """Two texts with the same mark are the same."""
    return hashlib.sha256(html.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def number(value: float) -> str:
    """`1,234`; a rate has one decimal."""
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


_environment = Environment(
    loader=PackageLoader("featd.web", "html"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "shown": shown,
    "sentence": sentence,
    "whole": words.whole,
    "number": number,
    "mark": mark,
}


def render(name: str, **values: Any) -> str:
    """A template as text."""
    return _environment.get_template(name).render(values)


class _Page(HTMLResponse):
    def render(self, content: Any) -> bytes:
        # A lone surrogate, which no database should hold, must not end a request.
        return str(content).encode("utf-8", "backslashreplace")


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as an answer."""
    return _Page(render(name, **values), status)
