"""`featd net`: the layers and blobs of a net."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd.errors import EXIT_BAD_CONFIG
from featd_cli.colours import DOUBTFUL, WRONG, paint
from featd_cli.console import complain, document, say, shown
from featd_cli.instance import JsonOption

NOTHING = "nothing: "
"""What runs a layer that no engine runs, before the reason."""
CAFFE = "caffe"
"""What runs a layer that needs real Caffe."""

if TYPE_CHECKING:
    from featd.net.describe import LayerReport, NetReport


def net(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A deploy.prototxt, a .onnx, or `gist` (built in).")
    ],
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The .caffemodel, to check whether it fits.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the layers and blobs of a net.

    Shows their sizes, and which engine runs each layer. `blobs` in the configuration names blobs of this list.
    Exits 78 if the weights do not fit, or if nothing installed here runs the net to its end.
    """
    from featd.engines.select import runnable
    from featd.net.describe import describe

    report = describe(file, weights)
    if as_json:
        document(asdict(report))
    else:
        _print(report)
    fit = report.weights
    if fit is not None and (fit.problem or fit.missing):
        complain(fit.problem or f"{weights}: the weights lack layers: {', '.join(fit.missing)}")
        raise typer.Exit(EXIT_BAD_CONFIG)
    blobs, why = runnable(report)
    if why:
        can = f"blobs that can be extracted: {', '.join(blobs)}" if blobs else "no blob can be extracted"
        complain(f"{file}: nothing installed here runs the net to its end: {why}; {can}")
        raise typer.Exit(EXIT_BAD_CONFIG)


def _print(report: NetReport) -> None:
    say(f"{paint(shown(report.name), bold=True)}  ({shown(report.source)})")
    say()
    layers = [
        (
            layer.name,
            layer.type,
            " ".join(_shape(shape) for shape in layer.top_shapes),
            "-" if layer.weights is None else f"{layer.weights:,}",
            _runs_on(layer, "onnxruntime" if report.outputs else "caffe, onnxruntime"),
        )
        for layer in report.layers
    ]
    _table(("LAYER", "TYPE", "OUTPUT", "WEIGHTS", "RUNS ON"), layers)
    say()
    blobs = [(blob.name, _shape(blob.shape), f"{blob.size:,}" if blob.size else "?") for blob in report.blobs]
    _table(("BLOB", "SHAPE", "SIZE"), blobs)
    if report.outputs:
        say()
        say(shown(f"input: {report.input}"))
        say(shown(f"outputs: {', '.join(report.outputs)}"))
        for why in report.not_vectors:
            say(shown(f"no blob: {why}"))
    if report.weights is not None:
        say()
        fit = report.weights
        say(
            f"weights: {len(fit.matched)} layers matched, {len(fit.missing)} missing, {len(fit.unused)} unused"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "1"


def _runs_on(layer: LayerReport, engines: str) -> str:
    if layer.problem is not None:
        # What to do about it is said once, in the end.
        return f"{NOTHING}{layer.problem.partition(': export ')[0]}"
    return engines if layer.onnxruntime else CAFFE


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    lines = [head, *([shown(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        colour = WRONG if line[-1].startswith(NOTHING) else DOUBTFUL if line[-1] == CAFFE else None
        say(paint(text, colour, bold=line is head))
