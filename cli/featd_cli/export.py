"""`featd export`: the live vectors, or what became of them since a token, in files that other tools read."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.states import State
from featd_cli.console import document, note, progress, say, shown
from featd_cli.files import check_output
from featd_cli.instance import ConfigOption, JsonOption, open_instance

if TYPE_CHECKING:
    pass


class Format(StrEnum):
    """What `export` writes."""

    NPY = "npy"
    HDF5 = "hdf5"
    PARQUET = "parquet"


class Numbers(StrEnum):
    """What the numbers of a vector are written as."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


SUFFIXES = {
    ".h5": Format.HDF5,
    ".hdf5": Format.HDF5,
    ".hdf": Format.HDF5,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
}


def export(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="npy: a folder to create, or - for standard output; hdf5, parquet: a file to create.",
        ),
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="npy: features.npy, ids.npy, names.txt and others in OUT; hdf5: feats, image_id, names and others;"
            " parquet: a row for each image, which DuckDB, Polars and others read.",
        ),
    ] = Format.NPY,
    blob: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A blob to export; repeat it for several. Default: the first."),
    ] = None,
    all_blobs: Annotated[bool, typer.Option("--all-blobs", help="Export all blobs.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Only the vectors that have changed since TOKEN, which an earlier export printed, and the ids of"
            " images that have none any more.",
        ),
    ] = None,
    l2: Annotated[bool, typer.Option("--l2", help="Divide each vector by its Euclidean norm.")] = False,
    dtype: Annotated[Numbers | None, typer.Option(help="Default: as stored.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Write the live vectors to files for other tools.

    The vectors are in order of image, with the ids and names beside them. Memory use does not depend on their number.
    Your umask decides who may read them. With - as OUT, the array of features.npy alone goes to standard output.

    featd may keep running: an image that changes or vanishes during the export is left out, or has the vector that
    it had when the export reached it. The token that is printed, and kept in the export, leads to such changes: give
    it to the next export with --since.
    """
    chosen = ctx.get_parameter_source("form")
    to_stdout = str(out) == "-"
    if all_blobs and blob:
        raise typer.BadParameter("give either --blob or --all-blobs", param_hint="--all-blobs")
    if to_stdout and form is not Format.NPY:
        raise typer.BadParameter(
            f"a file of the format {form} cannot be written to standard output: name a file, or use --format npy",
            param_hint="OUT",
        )
    if to_stdout and as_json:
        raise typer.BadParameter("standard output has the array already: name a folder", param_hint="--json")
    if to_stdout and sys.stdout.isatty():
        raise typer.BadParameter(
            "standard output is a terminal: write `featd export - > FILE.npy`, or name a folder",
            param_hint="OUT",
        )
    likely = SUFFIXES.get(out.suffix.lower())
    if likely is not None and (chosen is None or chosen.name == "DEFAULT"):
        raise typer.BadParameter(
            f"{out.name} looks like a file of another format: add --format {likely} (npy creates a folder)",
            param_hint="OUT",
        )
    from featd.catalog import counters
    from featd.config_file import find
    from featd.export import export as exporting

    with open_instance(ctx, config) as instance, progress() as advance:
        store = instance.settings.store.path
        wanted = exporting.Wanted(blob or (), all_blobs, since, l2, dtype)
        if to_stdout:
            exported = exporting.to_stream(
                instance.catalog, store, sys.stdout.buffer, wanted, advance=advance
            )
        else:
            check_output(out, instance.settings, find(config or ctx.obj))
            write = {
                Format.NPY: exporting.to_npy,
                Format.HDF5: exporting.to_hdf5,
                Format.PARQUET: exporting.to_parquet,
            }
            exported = write[form](instance.catalog, store, out, wanted, force=force, advance=advance)
        with instance.read() as conn:
            counts = counters.counts(conn)
    left_out = sum(counts[state] for state in (State.PENDING, State.CLAIMED, State.FAILED))
    if as_json:
        kinds = {name: {"size": kind.size, "dtype": str(kind.dtype)} for name, kind in exported.blobs.items()}
        told = {"out": str(out), "format": form, "rows": exported.rows, "blobs": kinds}
        document({**told, "deleted": exported.deleted, "left_out": left_out, "token": exported.token})
        return
    blobs = "; ".join(
        f"{exported.rows:,} vectors of {kind.size:,} numbers ({kind.dtype}), blob {shown(name)}"
        for name, kind in exported.blobs.items()
    )
    note(
        f"wrote {blobs}, to {'standard output' if to_stdout else shown(str(out))}"
        + (f", and {exported.deleted:,} deleted ids" if exported.deleted is not None else "")
        + (f"; {left_out:,} images have no vector: see `featd status`" if left_out else "")
    )
    if to_stdout:
        note(f"token: {exported.token}")
    else:
        say(exported.token)
