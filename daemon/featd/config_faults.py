"""What is wrong in a configuration: on which line, in plain words, and whether a look can go on without it."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featd.errors import ConfigError

ENV_PREFIX = "FEATD_"
DECIDING = {"catalog": "url", "store": "path"}
"""Where catalog and store are: section -> key."""
_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]")
_HEADER_LINE = re.compile(r"^[ \t]*(\[\[?)(?:([\w\-. \"]+)\]\]?|([A-Za-z_]+))[ \t]*(?:#.*)?$", re.MULTILINE)
"""The line of a header, also where a bracket is missing. (No value in a list is a bare word of letters.)"""
_ASSIGNED = re.compile(r"\s*([\w\-.\" ]+?)\s*=")
AUTO = "literal['auto']"
_FORMS = (AUTO, "tuple[str, ...]", "constrained-int")
"""What pydantic appends to the place of a value that may have one of several forms."""
_MOST_LINES = 1000
_MEANT = {
    "caffemodel": "weights",
    "database": "url",
    "definition": "net",
    "dir": "path",
    "directory": "path",
    "extensions": "include",
    "folder": "path",
    "gpu": "devices",
    "gpus": "devices",
    "layer": "blobs",
    "layers": "blobs",
    "model": "net",
    "output": "blobs",
    "outputs": "blobs",
    "prototxt": "net",
}
"""Words that people write for a key whose name has other letters."""
_TWICE = re.compile(r"Cannot declare \('(.*?)',?\) twice")
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
_OF_LENGTH = {
    "missing": "is missing",
    "too_short": "needs {min_length} values, and has {actual_length}",
    "too_long": "has more than {max_length} values",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, and what is said of it."""

    place: tuple[str | int, ...]
    told: str
    unknown: bool
    """Whether nothing has this name."""
    doubted: frozenset[str]
    """The sections of DECIDING whose key it may be, or may be meant to be."""

    @property
    def decides(self) -> bool:
        """Whether it may decide where catalog and store are."""
        return bool(self.doubted)

    @classmethod
    def at(cls, place: tuple[str | int, ...]) -> Fault:
        """A fault of which only the place is known."""
        return cls(place, "", unknown=False, doubted=frozenset())

    @classmethod
    def of(cls, problem: Any, keys: Mapping[str, Collection[str]]) -> Fault:
        """What pydantic says. `keys`: the names of the keys of each section."""
        place = tuple(part for part in problem["loc"] if part not in _FORMS)
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        kind, _, rest = problem["type"].partition("_")
        meant = ""
        if problem["type"] == "extra_forbidden":
            meant = _nearest(place, keys)
            what = "section" if len(place) == 1 and isinstance(problem["input"], dict | list) else "key"
            message = f"unknown {what}" + (f"; did you mean {meant}?" if meant else "")
        elif kind in _TYPES and rest in ("type", "parsing", "from_float", "attributes_type"):
            message = f"must be {_TYPES[kind]}"
            if kind in ("int", "float", "bool"):  # other values may hold a password
                message += f", not {problem['input']!r:.80}"
        elif problem["type"] in _OF_LENGTH:
            message = _OF_LENGTH[problem["type"]].format(**problem.get("ctx", {}))
        unknown = problem["type"] == "extra_forbidden"
        section = meant.partition(".")[0] if unknown and len(place) == 1 else str(place[0]) if place else ""
        doubted: frozenset[str] = frozenset()
        if section == "catalog" or (
            section == "store"
            and (len(place) < 2 or place[1] == "path" or (unknown and meant in ("", "store.path")))
        ):
            doubted = frozenset({section})
        elif unknown and len(place) == 1 and not section and isinstance(problem["input"], dict):
            doubted = frozenset(DECIDING)  # an unknown section may be meant to be the one that is missing
        told = f"{'.'.join(map(str, place)) or 'configuration'}: {message}"
        return cls(place, told, unknown, doubted)

    @property
    def section(self) -> tuple[str | int, ...]:
        """Its section, or its root; empty where it is about several sections."""
        return self.place[:2] if self.place[:1] == ("roots",) else self.place[:1]

    @property
    def variable(self) -> str:
        """The variable of the environment that gives the value; empty where the file does."""
        wanted = ENV_PREFIX + "__".join(map(str, self.place[:2])).upper()
        return next((name for name in os.environ if name.upper() == wanted), "")

    def is_dropped(self, document: dict[str, Any]) -> bool:
        """Take the key out of the document; False where it must not, or cannot, be done without."""
        sections = [document.get(section) for section in self.doubted]
        keys = [DECIDING[section] for section in self.doubted]
        said = all(isinstance(one, dict) and key in one for one, key in zip(sections, keys, strict=True))
        if self.decides and not (self.unknown and said):
            return False
        inside: Any = document
        *above, last = self.place[:3] if self.place[:1] == ("roots",) else self.place[:2] or ("preprocess",)
        for part in above:
            inside = inside[part] if not isinstance(inside, dict) or part in inside else {}
        if isinstance(inside, dict) and last in inside:
            del inside[last]
            return True
        # A root without a path, or a variable of the environment that gives a whole section.
        return document.pop(str(self.place[0]), None) is not None if self.place else False


def _nearest(place: tuple[str | int, ...], keys: Mapping[str, Collection[str]]) -> str:
    """The key that an unknown one may be meant to be, dotted; empty where none is like it."""
    name, section = str(place[-1]).lower().replace("-", "_"), str(place[0])
    if elsewhere := next((f"{other}.{name}" for other, names in keys.items() if name in names), ""):
        return elsewhere
    own = list(keys if len(place) == 1 else keys.get(section, ()))
    words = [_MEANT.get(word, word) for word in (name, *name.split("_"))]
    if len(place) > 1 and (word := next((word for word in words if word in own), "")):
        return f"{section}.{word}"
    if near := difflib.get_close_matches(name, own, 1):
        return near[0] if len(place) == 1 else f"{section}.{near[0]}"
    others = ((word, other) for word in words for other, names in keys.items() if word in names)
    return next((f"{other}.{word}" for word, other in others if other not in DECIDING), "")


def source_of(fault: Fault, path: Path, text: str) -> str:
    """The variable of the environment that is wrong, or the file and, where it is found, the line."""
    if fault.variable:
        return f"environment {fault.variable.upper()}"
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


def check_variables(keys: Mapping[str, Collection[str]], faults: list[str] | None) -> None:
    """Refuse a variable of an unknown section: a misspelled override would have no effect. With `faults`, it is one of
    them, unless it may be meant for where catalog or store are."""
    for name in os.environ:
        section, nested, key = name.upper().removeprefix(ENV_PREFIX).partition("__")
        if not name.upper().startswith(ENV_PREFIX) or not nested or section.lower() in keys:
            continue
        sections = ", ".join(keys)
        told = f"environment {name}: there is no section {section.lower()!r} (there are {sections})"
        if faults is None or _may_decide(section.lower(), key.lower(), keys):
            raise ConfigError(told)
        faults.append(told)


def _may_decide(section: str, key: str, keys: Mapping[str, Collection[str]]) -> bool:
    """Whether a variable of an unknown section may be meant for where catalog and store are."""
    for known, names in keys.items():
        if key in names:
            return DECIDING.get(known) == key
    near = difflib.get_close_matches
    return bool(near(section, DECIDING, 1) or near(key, DECIDING.values(), 1))


def parsed(path: Path, text: str, faults: list[str] | None) -> dict[str, Any]:
    """The document. With `faults`, without those of its sections that are no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        told = f"{path}: not valid TOML: {_in_plain_words(str(error), text)}"
        if faults is None:
            raise ConfigError(told) from None
        document = _sections_in_order(text)
        if document is None:
            raise ConfigError(
                f"{told}: correct this line first: without it, featd does not know where catalog and store are"
            ) from None
        faults.append(told)
        return document


def _in_plain_words(said: str, text: str) -> str:
    said = _TWICE.sub(lambda found: f"the section [{found[1]}] stands there twice", said)
    for theirs, plain in (
        ("Cannot overwrite a value", "a key stands there twice"),
        ("Illegal character '\\n'", "a text has no closing quote"),
        ("Found invalid character '\\n'", "a text has no closing quote"),
        ("Expected ']' at the end of a table declaration", "the name of a section has no closing ]"),
        ("Expected ']]' at the end of an array declaration", "the name of a section has no closing ]]"),
    ):
        said = said.replace(theirs, plain)
    if said.endswith("(at end of document)") and "twice" not in said:
        parts = _parts(text)
        at = next(
            (at for at, part in enumerate(parts) if _whole(part.splitlines()) < len(part.splitlines())), None
        )
        if at is not None:
            before = sum(part.count("\n") for part in parts[:at])
            return f"a value has no end (it begins at line {before + _whole(parts[at].splitlines()) + 1})"
    return said


def _sections_in_order(text: str) -> dict[str, Any] | None:
    """The sections of a TOML text that can be read although it is not valid as a whole. None where the others may say
    where catalog and store are."""
    document: dict[str, Any] = {}
    for part in _parts(text):
        read = _section(part)
        if read is None:
            return None
        for section, values in read.items():
            held = document.setdefault(section, values)
            if held is values:
                continue
            if isinstance(held, list) and isinstance(values, list):
                held += values
            elif section in DECIDING:
                return None
    return document


def _parts(text: str) -> list[str]:
    """A TOML text before its first header, and from each header on."""
    starts = [found.start() for found in _HEADER_LINE.finditer(text)]
    return [text[start:end] for start, end in itertools.pairwise([0, *starts, len(text)])]


def _section(part: str) -> dict[str, Any] | None:
    """What can be read of one section, from its header on. None where the rest may say where catalog and store are."""
    header = _HEADER_LINE.match(part)
    if header is not None:
        name = (header[2] or header[3]).strip(' "')
        part = header[1] + name + "]" * len(header[1]) + part[header.end() :]
    wanted = None if header is None else DECIDING.get(name)
    try:
        read = tomllib.loads(part)
    except tomllib.TOMLDecodeError:
        lines = part.splitlines()
    else:
        # A broken header may belong to another key's value: no default in the place of what it hides.
        return None if header and header[3] and wanted and wanted not in read[name] else read
    # The header of the next section may be what is broken, or be in a text of several lines.
    hidden = any(line.lstrip().startswith("[") for line in lines[1:]) or '"""' in part or "'''" in part
    if header is None or hidden:
        return None
    if name.partition(".")[0] not in DECIDING:
        return {}
    whole = _whole(lines)
    read = tomllib.loads("\n".join(lines[:whole]))
    # Known by a line before the fault, and not said again after it.
    again = any((found := _ASSIGNED.match(line)) and found[1].strip(' "') == wanted for line in lines[whole:])
    return read if wanted in read.get(name, {}) and not again else None


def _whole(lines: list[str]) -> int:
    """How many of these lines, from the first on, are TOML by themselves. (Among the first thousand.)"""
    for count in range(min(len(lines), _MOST_LINES), 0, -1):
        with suppress(tomllib.TOMLDecodeError):
            tomllib.loads("\n".join(lines[:count]))
            return count
    return 0


@contextmanager
def without(variables: Collection[str]) -> Iterator[None]:
    """The environment has none of these `variables` inside."""
    kept = {name: os.environ.pop(name) for name in variables}
    try:
        yield
    finally:
        os.environ.update(kept)
