"""Which file is the configuration, and its text. Light, because completion of a command line waits for it."""

from __future__ import annotations

import os
from pathlib import Path

from featd.errors import ConfigError, reason
from featd.paths import read_regular

MOST_BYTES = 16 * 1024 * 1024


def find(explicit: Path | None) -> Path:
    """The configuration file: --config, then FEATD_CONFIG, ./featd.toml, the XDG folder, /etc/featd."""
    if explicit is not None:
        return explicit
    if named := os.environ.get("FEATD_CONFIG"):
        return Path(named)
    xdg = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    candidates = [Path("featd.toml"), xdg / "featd" / "featd.toml", Path("/etc/featd/featd.toml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(str(path) for path in candidates)
    raise ConfigError(
        f"no configuration found (looked for {looked}): make one with `featd init`, or name it with --config"
    )


def read_text(path: Path) -> str:
    """The text of a configuration file. ConfigError where there is none."""
    try:
        return read_regular(path, MOST_BYTES).decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {reason(error)}") from None
