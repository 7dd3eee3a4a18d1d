"""What is wrong in a configuration file: on which line, in plain words, and whether a look can go on without it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENV_PREFIX = "FEATD_"
_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]")
_ASSIGNED = re.compile(r"\s*([\w\-.\" ]+?)\s*=")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotes",
    "path": "text in quotes",
    "tuple": "a list",
    "model": "a section",
}
"""What pydantic's kinds of type error mean in a TOML file."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, and what is said of it."""

    place: tuple[str | int, ...]
    told: str
    decides: bool
    """Whether it may decide where catalog and store are."""

    @classmethod
    def of(cls, problem: Any, keys: Mapping[str, Collection[str]]) -> Fault:
        """What pydantic says. `keys`: the names of the keys of each section."""
        place = tuple(part for part in problem["loc"] if part not in ("literal['auto']", "tuple[str, ...]"))
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        kind, _, rest = problem["type"].partition("_")
        meant = ""
        if problem["type"] == "extra_forbidden":
            meant = _nearest(place, keys)
            message = "unknown key" + (f"; did you mean {meant}?" if meant else "")
        elif kind in _TYPES and rest in ("type", "parsing", "from_float", "attributes_type"):
            message = f"must be {_TYPES[kind]}"
            if kind in ("int", "float", "bool"):  # other values may hold a password
                message += f", not {problem['input']!r:.80}"
        unknown = problem["type"] == "extra_forbidden"
        section = meant.partition(".")[0] if unknown and len(place) == 1 else str(place[0]) if place else ""
        decides = (
            section == "catalog"
            or (
                section == "store"
                and (len(place) < 2 or place[1] == "path" or (unknown and meant in ("", "store.path")))
            )
            # An unknown section may be meant to be the one that is missing.
            or (unknown and len(place) == 1 and not section and isinstance(problem["input"], dict))
        )
        return cls(place, f"{'.'.join(map(str, place)) or 'configuration'}: {message}", decides)

    def is_dropped(self, document: dict[str, Any]) -> bool:
        """Take the key out of the document; False where it must not, or cannot, be done without."""
        if self.decides:
            return False
        inside: Any = document
        *above, last = self.place[:3] if self.place[:1] == ("roots",) else self.place[:2] or ("preprocess",)
        for part in above:
            inside = inside[part] if not isinstance(inside, dict) or part in inside else {}
        if isinstance(inside, dict) and last in inside:
            del inside[last]
            return True
        # A root without a path, or a variable of the environment.
        return document.pop(str(self.place[0]), None) is not None if self.place else False


def _nearest(place: tuple[str | int, ...], keys: Mapping[str, Collection[str]]) -> str:
    """The key that an unknown one may be meant to be, dotted; empty where none is like it."""
    name, section = str(place[-1]).lower().replace("-", "_"), str(place[0])
    if elsewhere := next((f"{other}.{name}" for other, names in keys.items() if name in names), ""):
        return elsewhere
    own = list(keys if len(place) == 1 else keys.get(section, ()))
    if near := difflib.get_close_matches(name, own, 1):
        return near[0] if len(place) == 1 else f"{section}.{near[0]}"
    return ""


def source_of(fault: Fault, path: Path, text: str) -> str:
    """The variable of the environment that is wrong, or the file and, where it is found, the line."""
    variable = ENV_PREFIX + "__".join(map(str, fault.place[:2])).upper()
    if variable in map(str.upper, os.environ):
        return f"environment {variable}"
    line = line_of(text, fault.place)
    return f"{path}: line {line}" if line else str(path)


def line_of(text: str, place: tuple[str | int, ...]) -> int | None:
    """The line of a TOML text on which the key at `place` is, else that of its section; None where neither is seen."""
    if not place:
        return None
    section, number, found = "", -1, None
    *above, key = [str(part) for part in place if isinstance(part, str)]
    for at, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = header[1].strip()
            number += section == "roots"
        elif assigned := _ASSIGNED.match(line):
            section_, name = section, assigned[1].replace('"', "").replace(" ", "")
            dotted = f"{section_}.{name}" if section_ else name
            if dotted == ".".join([*above, key]) and (section != "roots" or number in place):
                return at
        if found is None and header and section == str(place[0]) and (section != "roots" or number in place):
            found = at
    return found
