"""The commands that featd's sentences recommend, such as `featd failures`: named so that they can be copied."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_RECOMMENDED = re.compile("`featd (?!--|init|service)")
_featd = "`featd "


def name_config(config: Path | None) -> None:
    """From now on, `named` commands name this configuration. Children that are forked know it, too."""
    global _featd
    _featd = "`featd " + (f"--config {shlex.quote(str(config))} " if config else "")


def named(text: str) -> str:
    """`text`, whose commands stand between backticks, with the configuration that was named."""
    return _RECOMMENDED.sub(lambda _: _featd, text)
