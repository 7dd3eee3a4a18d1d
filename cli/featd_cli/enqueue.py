"""`featd enqueue`: process these files before all others."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError
from featd.paths import mtime_of, to_catalog
from featd.states import PRIORITY_ASKED
from featd_cli.console import note, say, shown
from featd_cli.files import locate
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    import sqlalchemy as sa

    from featd.catalog.enqueue import Enqueued
    from featd.config import RootConfig


def enqueue(
    ctx: typer.Context,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders under the roots.")],
    config: ConfigOption = None,
) -> None:
    """Process these files before all others.

    New and changed files become pending, ahead of arrivals and backlog. Files that are waiting already move to the
    front. Files that are done and unchanged stay done. Exits 3 if a path is not an image under a root.
    """
    from featd import logs
    from featd.catalog.enqueue import Enqueued

    logs.setup("ERROR")  # the lines below report everything
    total = Enqueued()
    with open_instance(ctx, config) as instance:
        chosen = [(path, *locate(instance.settings.roots, path)) for path in paths]
        for path, root, raw in chosen:
            total.add(_take(instance.catalog, path, root, raw))
    taken = total.new + total.changed + total.returned
    say(str(taken))
    note(
        f"{total.new:,} new, {total.changed:,} changed, {total.returned:,} returned; waiting images moved to the front"
    )


def _take(catalog: sa.Engine, path: Path, root: RootConfig, raw: bytes) -> Enqueued:
    from featd.catalog import connect
    from featd.catalog import enqueue as catalog_enqueue
    from featd.catalog.enqueue import FoundFile
    from featd.ingest.scan import scan_root
    from featd.roots import Globs

    try:
        found = path.stat(follow_symlinks=root.follow_symlinks)
    except OSError as error:
        raise NothingMatchedError(f"{path}: {error.strerror}") from None
    if stat.S_ISDIR(found.st_mode):
        return scan_root(catalog, root, start=raw, priority=PRIORITY_ASKED).enqueued
    name = to_catalog(raw)
    if not stat.S_ISREG(found.st_mode) or not Globs(root.include, root.exclude).takes(name):
        raise NothingMatchedError(
            f"{shown(str(path))} does not match the `include` and `exclude` patterns of its root: see featd.toml"
        )
    file = FoundFile(name, found.st_size, mtime_of(found))
    return connect.transact(catalog, catalog_enqueue.enqueue, str(root.path), [file], priority=PRIORITY_ASKED)
