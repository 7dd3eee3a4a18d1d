"""Changing values in featd.toml, while everything else in it stays as it is."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from featd.config_faults import line_of
from featd.errors import ConfigError, reason


def edited(text: str, section: str, values: Mapping[str, str]) -> str | None:
    """The text with these values (in TOML) for keys of a section, which may lack; None where that cannot be done
    without changing more."""
    lines = text.splitlines()
    for key, value in reversed(list(values.items())):  # each new one comes first
        at = line_of("\n".join(lines), (section, key))
        if at is None:
            lines += ["", f"[{section}]"]
            at = len(lines)
        found = re.match(rf"(\s*[\w.\" ]*\b{key}\"?\s*=\s*)([^#]*?)(\s*#.*)?$", lines[at - 1])
        if found:
            lines[at - 1] = f"{found[1]}{value}{found[3] or ''}"
        else:
            lines.insert(at, f"{key} = {value}")
    new = "\n".join(lines) + "\n"
    try:
        wanted, made = tomllib.loads(text), tomllib.loads(new)
        wanted[section] = wanted.get(section, {}) | {
            key: tomllib.loads(f"it = {value}")["it"] for key, value in values.items()
        }
    except (tomllib.TOMLDecodeError, TypeError):
        return None
    return new if made == wanted else None


def write(file: Path, section: str, values: Mapping[str, str]) -> None:
    """Change the file; owner and mode stay. ConfigError with the lines to write by hand."""
    from featd.shards.atomic import write_atomically

    by_hand = f"change it by hand: [{section}] " + ", ".join(
        f"{key} = {value}" for key, value in values.items()
    )
    file = file.resolve()
    try:
        before = file.stat()
        text = edited(file.read_text(encoding="utf-8"), section, values)
        if text is None:
            raise ConfigError(
                f"{file}: its [{section}] is written in a way that is not changed here; {by_hand}"
            )
        write_atomically(file, text.encode())
        os.chmod(file, before.st_mode & 0o7777)  # noqa: PTH101
        after = file.stat()
        if (after.st_uid, after.st_gid) != (before.st_uid, before.st_gid):
            os.chown(file, before.st_uid, before.st_gid)
    except OSError as error:
        raise ConfigError(f"{file}: {reason(error)}; {by_hand}") from None
