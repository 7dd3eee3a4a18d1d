"""`featd adopt`: takes over the vectors that a script made."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd import logs
from featd.errors import EXIT_FAILED_ROWS, FeatdError, LeaseLostError, NothingMatchedError
from featd_cli.console import counted, document, note, progress, say, shown, warn
from featd_cli.files import check_output
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance
from featd_cli.selection import moment_of

if TYPE_CHECKING:
    from featd.adopt.outcome import LeftRow, Outcome
    from featd.adopt.sample import Sample
    from featd.adopt.script_file import ScriptFile
    from featd.config import RootConfig
    from featd.worker.plan import WorkerPlan

INTERRUPTED = 130


def adopt(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="An HDF5 file with vectors and names.")],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The root that has the images. Default: the one that is configured."
        ),
    ] = None,
    feats: Annotated[str, typer.Option(metavar="NAME", help="The dataset of the vectors.")] = "feats",
    names: Annotated[str, typer.Option(metavar="NAME", help="The dataset of the names.")] = "names",
    made_at: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="When the vectors were made: 2h, 3d (ago), or an ISO date and time. Images that changed later are left"
            " out. Default: when each FILE was last written.",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many images are computed again to compare.")
    ] = 32,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Draw the same sample as with this number before.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only compare the sample, and say what would be adopted.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a line of JSON for each row that is not adopted, with why."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report if it exists.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Take over the vectors that a script made.

    The names may be absolute paths, paths below the root, or names of files alone. First, some images are computed
    again and compared: unless all agree, nothing is adopted. Then every image is read and hashed, and recorded as done
    with its vector; the net does not run. featd may keep running. Images that are done already stay as they are. If the
    command is interrupted, run it again: it goes on. Exits 0 if every row is adopted or was there, 4 if some were left,
    and says why; 3 if no name is that of an image.
    """
    from featd.adopt import adopt as adopting
    from featd.adopt import sample as sampling
    from featd.adopt.chosen import choose
    from featd.adopt.outcome import Outcome
    from featd.adopt.places import Places
    from featd.catalog import pairing
    from featd.config_file import find
    from featd.ingest.scan_report import told_unreadable
    from featd.shards.store import refuse_root

    logs.setup("ERROR")
    with (
        _ending_at_sigterm(),
        open_instance(ctx, config) as instance,
        contextlib.ExitStack() as undo,
    ):
        store = instance.settings.store.path
        if not dry_run:
            refuse_root(store)
        pairing.check(instance.catalog, store, writable=not dry_run)
        wanted = _root(instance, root)
        opened = _opened(files, (feats, names), made_at, undo)
        chosen = choose(_plan(instance), wanted, opened)
        outcome = Outcome()
        if report is not None:
            check_output(report, instance.settings, find(config or ctx.obj), force=force)
            if report.is_dir() or not report.absolute().parent.is_dir():
                raise FeatdError(f"{report}: name a file in a folder that is there")
            if report.resolve() in {file.resolve() for file in files}:
                raise FeatdError(f"{report} is one of the files to adopt: name another place")
            outcome.tell = undo.enter_context(_report(report))
        advance = undo.enter_context(progress())
        places = undo.enter_context(Places(wanted, instance.settings.roots))
        found, unreadable = places.scan(advance)
        places.match(opened, outcome, advance)
        if unreadable:
            warn(f"{chosen.root}: {told_unreadable(unreadable)}: give featd's user the right")
        if not (placed := places.count()):
            raise NothingMatchedError(
                f"nothing to adopt: {chosen.root} has {counted(found, 'image')}, and none for a row of these files:"
                f" {_told(outcome)}"
            )
        advance("computing the sample", 0, 0)
        instance.catalog.dispose()  # its connections must not go through the fork
        agreed = sampling.draw_and_compare(chosen, opened, places, sample, seed)
        agreed.require_agreement()
        interrupted = False
        if dry_run:
            adopting.look(instance.catalog, chosen, opened, places, outcome)
        else:
            with _flagged() as stopping, _saying_how_to_go_on():
                adopting.adopt(
                    instance.catalog, chosen, agreed.identity, opened, places, outcome, advance, stopping
                )
                interrupted = stopping()
    if as_json:
        document(_as_document(outcome, agreed, placed, dry_run=dry_run, interrupted=interrupted))
    else:
        _show(outcome, agreed, dry_run=dry_run)
    if interrupted:
        warn(f"interrupted: {adopting.AGAIN}")
        raise typer.Exit(INTERRUPTED)
    if outcome.left:
        if report is None:
            note(
                "`--report FILE` lists the rows that are left, with why; featd extracts their images when it runs"
            )
        raise typer.Exit(EXIT_FAILED_ROWS)
    if not as_json:
        way = (
            "without --dry-run, this is done"
            if dry_run
            else "`featd run` extracts the images without a vector"
        )
        note(shown(f"next: {way}"))


def _root(instance: Instance, wanted: Path | None) -> RootConfig:
    """The configured root at this path, or the only one. It must be online."""
    from featd.roots import RootState, root_state

    roots = instance.settings.roots
    listed = ", ".join(str(one.path) for one in roots) or "none"
    if wanted is None and len(roots) != 1:
        raise typer.BadParameter(f"name one of the configured roots: {listed}", param_hint="--root")
    place = roots[0].path if wanted is None else Path(os.path.abspath(wanted))  # noqa: PTH100
    root = next((one for one in roots if place in (one.path, one.path.resolve())), None)
    root = root or next((one for one in roots if str(wanted) == one.key), None)
    if root is None:
        raise typer.BadParameter(
            f"{wanted} is not one of the configured roots: {listed}", param_hint="--root"
        )
    if (state := root_state(root.path)) is not RootState.ONLINE:
        raise FeatdError(f"root {root.path} is {state}: mount or restore it, then try again")
    return root


def _opened(
    files: Sequence[Path], datasets: tuple[str, str], made_at: str | None, undo: contextlib.ExitStack
) -> list[ScriptFile]:
    """Each of the files once, open until `undo`. ScriptFileError; OSError."""
    from featd.adopt.script_file import ScriptFile

    made = moment_of(made_at, "--made-at")
    opened: dict[tuple[int, int], ScriptFile] = {}
    for path in files:
        made_at_ns = None if made is None else int(made.timestamp() * 1e9)
        file = undo.enter_context(ScriptFile(path, *datasets, made_at_ns))
        opened.setdefault(file.key, file)
    return list(opened.values())


def _plan(instance: Instance) -> WorkerPlan:
    """What the first worker would be told."""
    from featd.daemon import configured

    specs = configured(instance.settings, socket.gethostname(), drain=False).specs
    plan: WorkerPlan = next(spec.plan for spec in specs if spec.name == "worker-0")
    return plan


@contextlib.contextmanager
def _report(path: Path) -> Iterator[Callable[[LeftRow], None]]:
    """Takes rows that are left; the file has its name once it is complete, also where the command fails later."""
    from featd.shards import atomic

    path = path.absolute()
    atomic.remove_part(path)
    file = os.fdopen(atomic.create_part(path, public=True), "w", encoding="utf-8")
    try:
        yield lambda row: print(json.dumps(asdict(row), ensure_ascii=False), file=file)
    finally:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        atomic.publish_part(path)


@contextlib.contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that temporary files are removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _flagged() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has arrived: then the command ends between two transactions."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: arrived.append(number)) for number in numbers]
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    from featd.adopt.adopt import AGAIN

    try:
        yield
    except LeaseLostError as error:
        raise FeatdError(f"{error} (was this process stopped for long?): {AGAIN}") from error


def _show(outcome: Outcome, sample: Sample, *, dry_run: bool) -> None:
    say(_told_sample(sample))
    if sample.unreadable:
        path, why = next(iter(sample.unreadable.items()))
        say(
            shown(
                f"{counted(len(sample.unreadable), 'image')} could not be read for it, such as {path}: {why}"
            )
        )
    say(f"{'would adopt' if dry_run else 'adopted'} {counted(outcome.adopted, 'vector')}")
    if outcome.there:
        say(f"already there: {outcome.there:,}")
    if outcome.same:
        say(f"named again with an equal vector: {outcome.same:,}")
    for why, count in outcome.left.most_common():
        say(f"{why}: {count:,}")


def _told_sample(sample: Sample) -> str:
    return f"sample: {counted(len(sample.compared), 'image')} agree, the largest distance is {sample.largest:.1g}"


def _told(outcome: Outcome) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in outcome.left.most_common()) or "no rows"


def _as_document(
    outcome: Outcome, sample: Sample, placed: int, *, dry_run: bool, interrupted: bool
) -> dict[str, Any]:
    """The document of --json."""
    return {
        "dry_run": dry_run,
        "interrupted": interrupted,
        "placed": placed,
        "adopted": outcome.adopted,
        "already_there": outcome.there,
        "named_again": outcome.same,
        "left": {why.replace(" ", "_"): count for why, count in outcome.left.items()},
        "sample": {
            "compared": [asdict(one) for one in sample.compared],
            "largest": sample.largest,
            "unreadable": sample.unreadable,
        },
    }
