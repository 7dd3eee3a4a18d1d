"""`featd scan`: scan the roots, without the daemon or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import EXIT_ERROR, ConfigError
from featd_cli.console import progress, say, shown
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    from featd.config import RootConfig


def scan(
    ctx: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", show_default=False, help="A root, or a folder in one. Default: every root."
        ),
    ] = None,
    confirm_gone: Annotated[
        bool,
        typer.Option(
            "--confirm-gone",
            help="What has vanished is gone, however much it is; former mounts are forgotten.",
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Scan the roots.

    Records new, changed, returned and vanished images. Reads no image and removes nothing. Skips an offline root and
    folders that cannot be read, and then exits 1.
    """
    from featd import logs
    from featd.catalog import root_names
    from featd.ingest.scan import Scan
    from featd.ingest.scan_report import describe
    from featd.roots import RootState, check_apart

    logs.setup("ERROR")  # the lines below report everything
    incomplete = False
    with open_instance(ctx, config) as instance:
        if not instance.settings.roots:
            raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
        check_apart([root.path for root in instance.settings.roots])
        root_names.check(instance.catalog, instance.settings.roots)
        for root, start in _chosen(instance.settings.roots, path):
            scanning = Scan(instance.catalog, root, start=start, confirm_gone=confirm_gone)
            report = scanning.report
            with progress() as advance:
                while not scanning.step():
                    advance("scanning", report.files, 0, len(report.enqueued.refused))
            incomplete |= report.state is not RootState.ONLINE or bool(
                report.unreadable or report.held or report.away
            )
            say(shown(describe(report)))
    if incomplete:
        raise typer.Exit(EXIT_ERROR)


def _chosen(roots: tuple[RootConfig, ...], path: Path | None) -> list[tuple[RootConfig, bytes]]:
    """The roots to scan, each with the folder below it to start at (empty: all of it)."""
    if path is None:
        return [(root, b"") for root in roots]
    if path.is_file():
        raise typer.BadParameter(f"{path} is a file: scan takes a folder", param_hint="PATH")
    return [locate(roots, spelled_out(roots, path))]
