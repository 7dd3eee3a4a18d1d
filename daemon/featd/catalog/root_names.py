"""Names of roots against what the catalog calls them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from featd.catalog import connect, stats
from featd.config import RootConfig
from featd.errors import ConfigError


def check(catalog: sa.Engine, roots: Sequence[RootConfig]) -> None:
    """ConfigError where a root has a name that the catalog does not know, and the catalog has it by its path: all of
    its images would be images of another root, and be extracted again."""
    if not any(root.name for root in roots):
        return
    with connect.reading(catalog) as conn:
        known = {*stats.known_roots(conn)} - {root.key for root in roots}
    for root in roots:
        if str(root.path) in known:
            raise ConfigError(
                f"roots: the catalog has {root.path} by its path, and would take {root.name} for another root: write"
                f' name = "{root.path}"; `path` may be any then'
            )
