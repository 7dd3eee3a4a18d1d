"""`featd bench`: what this machine does with this model, what limits, and the settings to use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd.errors import FeatdError
from featd_cli.console import counted, document, note, progress, say, shown
from featd_cli.instance import ConfigOption, JsonOption, load_settings

if TYPE_CHECKING:
    from featd.bench.figures import Figures
    from featd.config import Settings
    from featd.sizing import Sizes


def bench(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Pictures to measure with. Default: those of the roots."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=5, max=3600, help="About how long to measure.", show_default=True)
    ] = 60.0,
    write: Annotated[bool, typer.Option("--write", help="Put the settings into featd.toml.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Measure this machine, and choose the settings.

    Measures reading, decoding, the net by batch and threads, and writing, then all together; says what limits, and
    which settings to use. They are kept for this host: from the next start on, they hold where featd.toml says "auto".
    Pictures are only read, and the catalog is not opened. featd must not run here meanwhile: the figures would be of
    what it leaves over.
    """
    from featd.bench.figures import limit
    from featd.bench.measure import draw, measure
    from featd.config import RootConfig
    from featd.config_file import find
    from featd.report import running
    from featd.report.watched import Watched
    from featd.sizing import keep
    from featd.start.seat import hold_locks
    from featd_cli import config_edit

    settings = load_settings(ctx, config)
    if pid := running.look(Watched.of(settings)).pid:
        raise FeatdError(
            f"featd runs here (pid {pid}), and the figures would be of what it leaves over: stop it, measure, start it"
            " again"
        )
    if folder is not None and not folder.is_dir():
        raise FeatdError(f"{folder}: no such folder")
    roots = settings.roots if folder is None else (RootConfig(path=folder.absolute()),)
    with hold_locks(settings):
        with progress(forks=True) as advance:
            figures = measure(settings, draw(roots), seconds, advance)
        found = _document(figures)
        kept = keep(settings, found, figures.best.sizes)
    if as_json:
        document({**found, "kept": str(kept)})
    else:
        _print(figures, limit(figures)[1])
    if write:
        file = find(config or ctx.obj)
        config_edit.write(file, "workers", toml(figures.best.sizes))
        note(f"{shown(str(file))} has them now")
    else:
        _note_other_values(settings, figures.best.sizes)


def toml(sizes: Sizes) -> dict[str, str]:
    """The settings as values of [workers]."""
    devices = ", ".join(f'"{device}"' for device in sizes.devices)
    numbers = {"batch": sizes.batch, "threads": sizes.threads, "decoders": sizes.decoders}
    return {"devices": f"[{devices}]"} | {key: str(value) for key, value in numbers.items()}


def _note_other_values(settings: Settings, sizes: Sizes) -> None:
    said = {key: getattr(settings.workers, key) for key in ("devices", "batch", "threads", "decoders")}
    other = [key for key, value in said.items() if value not in ("auto", getattr(sizes, key))]
    if other:
        named = ", ".join(f"{key} = {said[key]}" for key in other)
        note(
            f"the configuration says {named}, which holds until it says auto or the above: --write puts them there"
        )
    else:
        note("kept for the next start of featd on this host")


def _document(figures: Figures) -> dict[str, Any]:
    from featd import clock
    from featd.bench.figures import limit

    name, sentence = limit(figures)
    best = figures.best
    return {
        "measured_at": clock.utcnow().isoformat(timespec="seconds"),
        **asdict(figures),
        "limit": name,
        "limit_told": sentence,
        "images_per_second": round(best.images_per_second, 1),
        "settings": asdict(best.sizes),
    }


def _print(figures: Figures, sentence: str) -> None:
    unreadable = f" ({figures.unreadable} cannot be decoded)" if figures.unreadable else ""
    say(f"pictures  {figures.pictures}{unreadable}")
    for name, disk in (("reading", figures.reading), ("writing", figures.writing)):
        if disk is not None:
            say(f"{name}   {_rate(disk.images_per_second)} images/s, {disk.megabytes_per_second:,.0f} MB/s")
    for one in figures.decoding:
        say(f"decoding  {_rate(one.images_per_second)} images/s with {counted(one.decoders, 'decoder')}")
    for row in figures.forward:
        split = _told(row.devices, row.threads)
        say(f"net       {_rate(row.images_per_second)} images/s with {split}, batch {row.batch}")
    for whole in figures.whole:
        sizes = whole.sizes
        say(
            f"together  {_rate(whole.images_per_second)} images/s with {_told(sizes.devices, sizes.threads)}, batch"
            f" {sizes.batch}, {counted(sizes.decoders, 'decoder')} each"
        )
    say()
    say(sentence)
    say()
    say("[workers]")
    for key, value in toml(figures.best.sizes).items():
        say(f"{key} = {value}")


def _rate(rate: float) -> str:
    return f"{rate:9,.1f}" if rate < 100 else f"{rate:9,.0f}"


def _told(devices: tuple[str, ...], threads: int) -> str:
    return f"{counted(len(devices), 'worker')} of {counted(threads, 'thread')}"
