"""`featd export`: the live vectors in one file."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import FeatdError
from featd.states import State
from featd_cli.console import note, shown
from featd_cli.instance import ConfigOption, open_instance, sqlite_file

if TYPE_CHECKING:
    from featd.config import Settings


HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


class Format(StrEnum):
    """What `export` writes."""

    NPY = "npy"
    HDF5 = "hdf5"


def _refuse_own_files(out: Path, settings: Settings, config: Path) -> None:
    """Refuse to replace files of the instance itself, even with --force."""
    place = out.resolve()
    catalog = sqlite_file(settings.catalog.url)
    own = [config.resolve()]
    if catalog is not None:
        own += [catalog.with_name(catalog.name + end).resolve() for end in ("", "-wal", "-shm")]
    if place in own or place.is_relative_to(settings.store.path.resolve()):
        raise FeatdError(
            f"{out} belongs to this instance (catalog, store or configuration): name another place"
        )


def export(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="npy: a folder to create, or - for standard output; hdf5: a file to create.",
        ),
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="npy: features.npy, names.txt and roots.txt in OUT; hdf5: feats, names and root in OUT.",
        ),
    ] = Format.NPY,
    blob: Annotated[
        str | None, typer.Option(metavar="NAME", help="The blob to export. Default: the first.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write the live vectors to one file.

    The vectors are in order of image, with the names beside them. Memory use does not depend on their number. Your
    umask decides who may read them. With - as OUT, the array of features.npy alone goes to standard output, without
    names.

    featd may keep running: an image that changes or vanishes during the export is left out, or has the vector that
    it had when the export reached it.
    """
    chosen = ctx.get_parameter_source("form")
    to_stdout = str(out) == "-"
    if to_stdout and form is Format.HDF5:
        raise typer.BadParameter(
            "an HDF5 file cannot be written to standard output: name a file, or use --format npy",
            param_hint="OUT",
        )
    if to_stdout and sys.stdout.isatty():
        raise typer.BadParameter(
            "standard output is a terminal: write `featd export - > FILE.npy`, or name a folder",
            param_hint="OUT",
        )
    if out.suffix.lower() in HDF5_SUFFIXES and (chosen is None or chosen.name == "DEFAULT"):
        raise typer.BadParameter(
            f"{out.name} looks like an HDF5 file: add --format hdf5 (npy creates a folder)",
            param_hint="OUT",
        )
    from featd.catalog import counters
    from featd.config import find
    from featd.export import export as exporting

    with open_instance(ctx, config) as instance:
        store = instance.settings.store.path
        if to_stdout:
            exported = exporting.to_stream(instance.catalog, store, sys.stdout.buffer, blob=blob)
        else:
            _refuse_own_files(out, instance.settings, find(config or ctx.obj))
            write = exporting.to_npy if form is Format.NPY else exporting.to_hdf5
            exported = write(instance.catalog, store, out, blob=blob, force=force)
        with instance.read() as conn:
            counts = counters.counts(conn)
    left_out = sum(counts[state] for state in (State.PENDING, State.CLAIMED, State.FAILED))
    note(
        f"wrote {exported.rows:,} vectors of {exported.size:,} numbers ({exported.dtype}), blob"
        f" {shown(exported.blob)}, to {'standard output' if to_stdout else shown(str(out))}"
        + (f"; {left_out:,} images have no vector: see `featd status`" if left_out else "")
    )
