"""`featd failures`: the failed images, with kind and message."""

from __future__ import annotations

import typer

from featd.errors import EXIT_NOTHING_MATCHED, NothingMatchedError
from featd_cli.console import array, note, say, shown
from featd_cli.instance import ConfigOption, JsonOption, open_instance
from featd_cli.selection import KindOption, PathOption, full_path, image_filter

JSON_KEYS = ("path", "root", "kind", "message", "version", "errors", "crashes", "failed_at")


def failures(
    ctx: typer.Context,
    kind: KindOption = None,
    path: PathOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List the failed images and why they failed.

    One image per line: kind, path, message. Exits 3 if a filter matches nothing.
    """
    single, wanted = image_filter(kind, path)
    filtered = kind is not None or path is not None
    from featd.catalog import retry

    with open_instance(ctx, config) as instance:
        batches = retry.walk_failed(instance.catalog, kind=single)
        found = (image for batch in batches for image in batch if wanted(image))
        if as_json:
            count = array({key: getattr(image, key) for key in JSON_KEYS} for image in found)
        else:
            count = 0
            for image in found:
                say(f"{image.kind:<18} {shown(full_path(image.root, image.path))}: {shown(image.message)}")
                count += 1
    if count:
        return
    if filtered and not as_json:
        raise NothingMatchedError("no failed image matches")
    if filtered:
        raise typer.Exit(EXIT_NOTHING_MATCHED)
    if not as_json:
        note("no failed images")
