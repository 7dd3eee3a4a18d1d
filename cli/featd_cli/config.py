"""`featd config`: whether the configuration is sound, what it says, and its schema."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd.errors import EXIT_BAD_CONFIG
from featd_cli.colours import DOUBTFUL, FAINT, paint
from featd_cli.console import complain, document, say, shown
from featd_cli.instance import ConfigOption, JsonOption, load_settings

if TYPE_CHECKING:
    from featd.config import Settings

app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)

HIDDEN = "***"
_SECRETS = ("password", "secret", "token")
_WIDTH = 78
_BESIDE = 46
"""The column at which a line says where its value comes from."""


@dataclass(frozen=True, slots=True)
class Value:
    """An effective value and where it comes from: the line of the file, or the variable; else it is the default."""

    value: Any
    line: int | None = None
    variable: str | None = None
    in_file: bool = False

    @property
    def origin(self) -> str:
        return "environment" if self.variable else "file" if self.in_file else "default"


@app.command()
def check(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Check the configuration, and say all that is wrong.

    Each fault with its file, line and key, and the key that may be meant. Exits 78 where there is one. Looks only at
    the file and the environment, not at folders, nets or the database.
    """
    from featd.config import faults_of
    from featd.config_file import find

    file = find(config or ctx.obj)
    faults = faults_of(file)
    if as_json:
        document({"file": str(file), "sound": not faults, "faults": faults})
    elif not faults:
        say(f"{shown(str(file))}: no fault found")
    else:
        for fault in faults:
            complain(fault)
    if faults:
        raise typer.Exit(EXIT_BAD_CONFIG)


@app.command()
def show(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print the values in effect, and where each comes from.

    The file with its line, a variable of the environment, or the default. Paths are absolute. Passwords are hidden.
    """
    from featd.config_file import find, read_text

    file = find(config or ctx.obj).absolute()
    settings = load_settings(ctx, file)
    values = dict(_values(settings, file, read_text(file)))
    if as_json:
        told = {
            key: {"value": one.value, "from": one.origin, "line": one.line, "variable": one.variable}
            for key, one in values.items()
        }
        document({"file": str(file), "values": told})
        return
    say(paint(f"# {shown(str(file))}", FAINT))
    above = ""
    for key, one in values.items():
        section, _, name = key.rpartition(".")
        if section != above:
            say()
            say(paint("[[roots]]" if section.startswith("roots.") else f"[{section}]", bold=True))
            above = section
        for line in _lines(name, one):
            say(line)


@app.command()
def schema(
    as_json: Annotated[
        bool, typer.Option("--json", help="The schema is JSON: there is no other form.")
    ] = False,
) -> None:
    """Print the JSON Schema of featd.toml.

    `featd init` writes it beside featd.toml as featd.schema.json, where editors find it by the first line of featd.toml
    (Even Better TOML, taplo): they complete keys, explain them and mark what is wrong. After an upgrade of featd, write
    it again: featd config schema > featd.schema.json
    """
    from featd_cli.config_schema import schema as made

    document(made())


def _values(settings: Settings, file: Path, text: str) -> Iterator[tuple[str, Value]]:
    """Dotted key -> value."""
    import tomllib

    written = tomllib.loads(text)
    if isinstance(written.get("roots"), dict):
        written["roots"] = [written["roots"]]
    for section, values in settings.model_dump(mode="json").items():
        if section == "roots":
            for at, root in enumerate(values):
                for key, value in root.items():
                    yield f"roots.{at}.{key}", _value(("roots", at, key), value, written, file, text)
            continue
        for key, value in values.items():
            yield f"{section}.{key}", _value((section, key), value, written, file, text)


def _value(
    place: tuple[str | int, ...], value: Any, written: Mapping[str, Any], file: Path, text: str
) -> Value:
    from featd.config_faults import line_of

    name = str(place[-1])
    if value and any(secret in name for secret in _SECRETS):
        value = HIDDEN
    elif place == ("catalog", "url"):
        value = _without_password(value)
    if variable := _variable(place):
        return Value(value, variable=variable)
    inside: Any = written
    for part in place:
        try:
            inside = inside[part]
        except (KeyError, IndexError):
            return Value(value)
    return Value(value, line_of(text, place), in_file=True)


def _variable(place: tuple[str | int, ...]) -> str | None:
    """The variable of the environment that gives the value, alone or with its whole section."""
    from featd.config_faults import ENV_PREFIX, Fault

    if (alone := Fault.at(place).variable) and place[0] != "roots":
        return alone
    wanted = f"{ENV_PREFIX}{place[0]}".upper()
    whole = next((name for name in os.environ if name.upper() == wanted), None)
    if whole is None:
        return None
    return whole if place[0] == "roots" or place[1] in json.loads(os.environ[whole]) else None


def _without_password(url: str) -> str:
    from sqlalchemy import exc, make_url

    from featd.catalog.connect import without_password

    try:
        return without_password(make_url(url))
    except (exc.ArgumentError, ValueError):
        return f"{url.partition(':')[0]}://{HIDDEN}"


def _lines(name: str, one: Value) -> list[str]:
    """A key as TOML, and where it comes from."""
    if one.value is None:
        return [paint(f"# {name} is not set", FAINT)]
    where = f"line {one.line}" if one.line else one.variable or one.origin
    origin = paint(f"# {shown(where)}", DOUBTFUL if one.variable else FAINT)
    *first, last = _toml(name, one.value)
    return [*first, f"{last:<{_BESIDE}}  {origin}"]


def _toml(name: str, value: Any) -> list[str]:
    """`name = value`, on one line, or over several where it is a long list."""
    if not isinstance(value, list):
        return [f"{name} = {_toml_value(value)}"]
    values = [_toml_value(one) for one in value]
    if sum(map(len, values)) + 2 * len(values) + len(name) < _BESIDE - 5:
        return [f"{name} = [{', '.join(values)}]"]
    whole = ", ".join(one.replace(" ", "\0") for one in values)  # a value is not broken
    wrapped = textwrap.wrap(whole, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{name} = [", *(f"  {line}".replace("\0", " ") for line in wrapped), "]"]


def _toml_value(value: Any) -> str:
    from featd_cli.template import toml_string

    return shown(toml_string(value)) if isinstance(value, str) else json.dumps(value)
