"""What a check says: ok, a warning or an error, in one sentence, with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from featd.errors import FeatdError


class Level(StrEnum):
    """From best to worst."""

    OK = "ok"
    WARNING = "warning"  # featd works, but not as well as it could, or not safely
    ERROR = "error"  # featd does not start, or does not do its work


class About(StrEnum):
    """What is looked at. Scripts rely on these names."""

    CONFIGURATION = "configuration"
    PASSWORD = "password"
    USER = "user"
    ENGINES = "engines"
    EXTRAS = "extras"
    DEVICES = "devices"
    DRIVER = "driver"
    MODEL = "model"
    ROOT = "root"
    ROOTS = "roots"
    INOTIFY = "inotify"
    STORE = "store"
    CATALOG = "catalog"
    SCHEMA = "schema"
    DATABASE = "database"
    CLOCK = "clock"
    PAIRING = "pairing"
    ROOM = "room"
    FINGERPRINT = "fingerprint"
    FILES = "open files"
    TEMPORARY = "temporary files"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `way_out`: what to do about it; empty where nothing needs to be done."""

    check: About
    level: Level
    text: str
    way_out: str = ""


def ok(check: About, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warning(check: About, text: str, way_out: str) -> Finding:
    return Finding(check, Level.WARNING, text, way_out)


def error(check: About, text: str, way_out: str) -> Finding:
    return Finding(check, Level.ERROR, text, way_out)


_WAY_OUT = re.compile(
    r"(?:[:;,] (?:or )?|\. )(?=(?:is (?:the|its)|check|choose|create|give|if it is|install|list|look|make|name|put"
    r"|raise|rebuild|remove|restore|run|set|stop|use|where it|write|build|keep|leave|bring)\b)",
    re.IGNORECASE,
)
"""Where the way out begins in the message of an error."""
_ELSE = {
    About.MODEL: "correct the section [model]; `featd net FILE` lists the layers and blobs of a net",
    About.PAIRING: "see docs/operations.md",
}
"""The way out where a message names none."""


def told(check: About, problem: FeatdError, way_out: str = "", level: Level = Level.ERROR) -> Finding:
    """An error of featd as a finding. Its message says what to do, as a rule; `way_out` replaces that."""
    parts = _WAY_OUT.split(str(problem), maxsplit=1)
    if len(parts) == 2 and not way_out:
        return Finding(check, level, parts[0], parts[1])
    return Finding(check, level, str(problem), way_out or _ELSE.get(check, "correct the configuration"))


def worst(findings: Iterable[Finding]) -> Level:
    """The level of all together."""
    return max((finding.level for finding in findings), key=list(Level).index, default=Level.OK)
