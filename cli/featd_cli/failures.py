"""`featd failures`: the failed images, with kind and message, or how many there are by kind or folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import EXIT_NOTHING_MATCHED, NothingMatchedError
from featd.paths import full_path
from featd.states import State
from featd_cli.colours import STATES, paint
from featd_cli.console import array, note, say, shown
from featd_cli.instance import ConfigOption, JsonOption, open_instance
from featd_cli.selection import KindOption, PathOption, image_filter

if TYPE_CHECKING:
    from featd.catalog.retry import FailedImage

JSON_KEYS = ("path", "root", "kind", "message", "version", "errors", "crashes", "failed_at")


class By(StrEnum):
    """What `failures` counts by."""

    KIND = "kind"
    FOLDER = "folder"


def failures(
    ctx: typer.Context,
    kind: KindOption = None,
    path: PathOption = None,
    by: Annotated[
        By | None, typer.Option("--by", help="Count the failed images by this, the most frequent first.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Print at most N lines (or JSON items).")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List the failed images and why they failed.

    One image per line: kind, path, message. With --by, one kind or folder per line: count, name. Exits 3 if a filter
    matches nothing.
    """
    single, wanted = image_filter(kind, path)
    filtered = kind is not None or path is not None
    from featd.catalog import retry

    with open_instance(ctx, config) as instance:
        batches = retry.walk_failed(instance.catalog, kind=single)
        found = (image for batch in batches for image in batch if wanted(image))
        count = _counts(found, by, limit, as_json) if by else _images(found, limit, as_json)
    if count:
        return
    if filtered and not as_json:
        raise NothingMatchedError("no failed image matches")
    if filtered:
        raise typer.Exit(EXIT_NOTHING_MATCHED)
    if not as_json:
        note("no failed images")


def _images(found: Iterator[FailedImage], limit: int | None, as_json: bool) -> int:
    """Print the images; returns how many were printed."""
    some = islice(found, limit)
    if as_json:
        count = array({key: getattr(image, key) for key in JSON_KEYS} for image in some)
    else:
        count = 0
        for image in some:
            name = shown(full_path(image.root, image.path))
            say(f"{paint(f'{image.kind:<18}', STATES[State.FAILED])} {name}: {shown(image.message)}")
            count += 1
    if limit is not None and count == limit and next(found, None) is not None:
        note(f"only the first {limit:,} are shown: raise --limit for more")
    return count


def _counts(found: Iterator[FailedImage], by: By, limit: int | None, as_json: bool) -> int:
    """Print how many images there are of each kind or in each folder; returns how many lines were printed."""
    counted = Counter((image.kind,) if by is By.KIND else _folder_of(image) for image in found)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    some = ordered[:limit]
    if as_json:
        keys = ("kind",) if by is By.KIND else ("root", "folder")
        array({**dict(zip(keys, name, strict=True)), "count": count} for name, count in some)
    else:
        for name, count in some:
            what = (
                paint(name[0], STATES[State.FAILED]) if by is By.KIND else shown(full_path(*name)).rstrip("/")
            )
            say(f"{count:>10,}  {what}")
    if len(some) < len(ordered):
        note(f"only the first {len(some):,} of {len(ordered):,} are shown: raise --limit for more")
    return len(some)


def _folder_of(image: FailedImage) -> tuple[str, str]:
    """Root and folder below it; the root itself is ""."""
    return image.root, image.path.rpartition("/")[0]
