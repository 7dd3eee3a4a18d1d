"""The JSON Schema of featd.toml: types and limits from the settings, descriptions from the comments of the template."""

from __future__ import annotations

import re
from typing import Any

from featd_cli.template import Choices, render

_HEADER = re.compile(r"\[\[?(\w+)\]\]?")
_KEY = re.compile(r"(?:# )?(\w+) = ")
_NUMBERS = {"type": "integer", "minimum": 1, "maximum": 16_384}
_ALSO: dict[str, list[dict[str, Any]]] = {
    "model.blobs": [{"type": "string"}],
    "roots.include": [{"type": "string"}],
    "roots.exclude": [{"type": "string"}],
    "workers.devices": [{"type": "string"}],
    "preprocess.size": [_NUMBERS],
    "preprocess.crop": [_NUMBERS],
    "preprocess.mean": [{"type": "number"}],
    "preprocess.std": [{"type": "number"}],
}
"""What a key may also be given as: one value in place of a list."""


def schema() -> dict[str, Any]:
    """A JSON Schema of draft 7, which the editors' TOML extensions read."""
    from featd.config import Settings

    whole: dict[str, Any] = Settings.model_json_schema(ref_template="#/definitions/{model}")
    told = descriptions()
    definitions = whole.pop("$defs")
    sections = {}
    for section, value in whole["properties"].items():
        name = _name_of(value)
        definition = definitions[name]
        definition.pop("title")
        if text := told.get(section):
            definition["description"] = text
        definition["properties"] = {
            key: _property(f"{section}.{key}", one, told) for key, one in definition["properties"].items()
        }
        one = {"$ref": f"#/definitions/{name}"}
        # [roots] in place of [[roots]] is one root.
        sections[section] = {"anyOf": [{"type": "array", "items": one}, one]} if section == "roots" else one
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "featd.toml",
        "description": "The configuration of featd.",
        "type": "object",
        "additionalProperties": False,
        "properties": sections,
        "definitions": definitions,
    }


def descriptions() -> dict[str, str]:
    """The comment above each section and key of the template, by its dotted name."""
    found: dict[str, str] = {}
    section, comment = "", [""]
    for line in render(Choices(("/images",))).splitlines():
        header, key = _HEADER.fullmatch(line), _KEY.match(line)
        if header:
            section = header[1]
            found[section] = " ".join(comment)
        elif key and section:
            found[f"{section}.{key[1]}"] = " ".join(comment)
        elif line.startswith("# "):
            comment.append(line[2:])
            continue
        comment = []
    return found


def _name_of(value: dict[str, Any]) -> str:
    """The definition that a section refers to."""
    reference: str = value.get("items", value)["$ref"]
    return reference.rpartition("/")[2]


def _property(key: str, value: dict[str, Any], told: dict[str, str]) -> dict[str, Any]:
    """One key: without null, which TOML does not have, and with what may also be written."""
    forms = [one for one in value.pop("anyOf", [value]) if one != {"type": "null"}]
    forms = [_as_draft_7(form) for form in forms] + _ALSO.get(key, [])
    described = {"description": text} if (text := told.get(key)) else {}
    default = {} if value.get("default") is None else {"default": value["default"]}
    return {**described, **default, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _as_draft_7(form: dict[str, Any]) -> dict[str, Any]:
    form = {name: value for name, value in form.items() if name not in ("title", "default", "format")}
    if "prefixItems" in form:
        form["items"] = form.pop("prefixItems")
    return form
