"""What `search`, `duplicates` and `index` have in common: options, names of images, and words about the index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd.paths import from_catalog, full_path
from featd_cli.console import counted, warn
from featd_cli.files import check_output

if TYPE_CHECKING:
    from featd.catalog.live import LiveVector
    from featd_cli.instance import Instance

BlobOption = Annotated[
    str | None, typer.Option("--blob", metavar="NAME", help="The blob to compare. Default: the first.")
]
SheetOption = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="OUT.png", help="Also draw the pictures, side by side, into this file."),
]

ForceOption = Annotated[bool, typer.Option("--force", help="Replace the sheet if it exists.")]


def check_sheet(sheet: Path | None, instance: Instance, config: Path | None, force: bool) -> None:
    """FeatdError where the sheet cannot or must not be written there."""
    from featd.config_file import find
    from featd.search.sheet import check_name

    if sheet is not None:
        check_name(sheet)
        check_output(sheet, instance.settings, find(config), force=force)


def tell_unreadable(shards: Mapping[str, str]) -> None:
    """Say that the vectors of some shards cannot be found."""
    if shards:
        first = next(iter(shards.values()))
        warn(f"the vectors of {counted(len(shards), 'shard')} are left out: {first}")


def folders_of(instance: Instance) -> dict[str, str]:
    """What the catalog calls the roots -> their folders on this host."""
    from featd.config import places

    return places(instance.settings.roots)


def file_of(image: LiveVector, roots: Mapping[str, str]) -> Path:
    """The image's file. `roots`: where they are."""
    return Path(roots.get(image.root, image.root), os.fsdecode(from_catalog(image.path)))


def name_of(image: LiveVector) -> str:
    """The image's file, in catalog form."""
    return full_path(image.root, image.path)


def as_document(image: LiveVector, **more: Any) -> dict[str, Any]:
    """An image for `--json`."""
    return {"image_id": image.image_id, "root": image.root, "path": image.path, **more}
