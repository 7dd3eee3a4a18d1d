"""`featd enqueue`: process these files before all others."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError, RefusedError
from featd.paths import to_catalog
from featd.states import PRIORITY_ASKED, Kind
from featd_cli.console import note, say, shown
from featd_cli.files import locate
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    import sqlalchemy as sa

    from featd.catalog.enqueue import Enqueued, Reread
    from featd.config import RootConfig


def enqueue(
    ctx: typer.Context,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files or folders under the roots.")],
    force: Annotated[
        bool, typer.Option("--force", help="Read again what is done or failed, even if it has not changed.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Process these files before all others.

    New and changed files become pending, ahead of arrivals and backlog. Files that are waiting already move to the
    front. Files that are done and unchanged stay done; with --force, they are read again: the vector is made again if
    the content differs, or if the shard is missing or damaged. Prints how many images became pending. Exits 3 if a
    path is not an image under a root.
    """
    from featd import logs
    from featd.catalog.enqueue import Enqueued, Reread

    logs.setup("ERROR")  # the lines below report everything
    total = Enqueued()
    with open_instance(ctx, config) as instance:
        chosen = [(path, *locate(instance.settings.roots, path)) for path in paths]
        for path, root, raw in chosen:
            total.add(_take(instance.catalog, path, root, raw, Reread.ALL if force else Reread.DOUBTED))
    taken = total.new + total.changed + total.returned + total.reread
    say("1 image enqueued" if taken == 1 else f"{taken:,} images enqueued")
    note(
        f"{total.new:,} new, {total.changed:,} changed, {total.returned:,} returned, {total.reread:,} to read again;"
        " waiting images moved to the front"
    )
    if total.refused:
        raise RefusedError(
            f"the catalog cannot hold {len(total.refused):,} of these files: see `featd failures --kind"
            f" {Kind.CATALOG_REFUSED}`"
        )


def _take(catalog: sa.Engine, path: Path, root: RootConfig, raw: bytes, reread: Reread) -> Enqueued:
    from featd.ingest.scan import enqueue_files, scan_root
    from featd.ingest.walk import found_file
    from featd.roots import Globs

    try:
        found = path.stat(follow_symlinks=root.follow_symlinks)
    except OSError as error:
        raise NothingMatchedError(f"{path}: {error.strerror}") from None
    if stat.S_ISDIR(found.st_mode):
        return scan_root(catalog, root, start=raw, priority=PRIORITY_ASKED, reread=reread).enqueued
    name = to_catalog(raw)
    if not stat.S_ISREG(found.st_mode) or not Globs(root.include, root.exclude).takes(name):
        raise NothingMatchedError(
            f"{shown(str(path))} does not match the `include` and `exclude` patterns of its root: see featd.toml"
        )
    return enqueue_files(catalog, root, [found_file(name, found)], PRIORITY_ASKED, reread=reread)
