"""`featd retry-failed`: failed images become pending again."""

from __future__ import annotations

from typing import Annotated

import typer

from featd_cli.console import document, note, say, shown
from featd_cli.instance import ConfigOption, JsonOption, open_instance
from featd_cli.selection import KindOption, PathOption, SinceOption, image_filter, moment_of


def retry_failed(
    ctx: typer.Context,
    kind: KindOption = None,
    path: PathOption = None,
    since: SinceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print how many images there are.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make failed images pending again.

    Their failed attempts no longer count. Without filters, all failed images. Prints how many there are.
    """
    single, wanted = image_filter(kind, path)
    moment = moment_of(since, "--since")
    from featd.catalog import connect, retry

    count = 0
    with open_instance(ctx, config) as instance:
        for batch in retry.walk_failed(instance.catalog, kind=single, since=moment):
            ids = [image.id for image in batch if wanted(image)]
            count += len(ids) if dry_run else connect.transact(instance.catalog, retry.retry, ids)
    if as_json:
        document({"dry_run": dry_run, "images": count})
        return
    images = "1 image" if count == 1 else f"{count} images"
    say(f"{images} would be retried" if dry_run else f"{images} pending again")
    if count and not dry_run:
        note(shown("next: `featd run` tries them again"))
