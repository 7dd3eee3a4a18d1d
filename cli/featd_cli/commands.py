"""The commands of `featd`: each is imported when it is asked for, so that none waits for the others.

Typer builds a command from the signature of its function, which takes a millisecond or more; with thirty of them
`featd --help` and every word completed by a shell would take twice as long.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import typer
import typer.core

# Name: first line of its help. A command is the function of its name in the module of its name, or a group, `app`.
HELP = {
    "init": "Create a featd.toml, the catalog and the store.",
    "run": "Run the daemon.",
    "status": "Show whether featd runs, its progress and its bottleneck.",
    "doctor": "Check machine, configuration, roots, store and catalog.",
    "bench": "Measure this machine, and choose the settings.",
    "pause": "Let workers claim nothing more until `featd resume`.",
    "resume": "Let the workers of a paused host go on.",
    "failures": "List the failed images and why they failed.",
    "retry-failed": "Make failed images pending again.",
    "scan": "Scan the roots.",
    "enqueue": "Process these files before all others.",
    "explain": "Show everything that is known about one image.",
    "logs": "Show the log of the service.",
    "net": "Show the layers and blobs of a net.",
    "export": "Write the live vectors to files for other tools.",
    "adopt": "Take over the vectors that a script made.",
    "changes": "List what became of the live vectors since a token.",
    "search": "Find the images that are nearest to a picture.",
    "duplicates": "List pictures that are there more than once.",
    "index": "Bring the index of search and duplicates up to date.",
    "compact": "Merge small shards into larger ones.",
    "verify": "Compare shards, catalog and files with each other.",
    "forget": "Remove images and their vectors for good.",
    "backup": "Back up catalog, shards and configuration.",
    "restore": "Restore a backup onto an empty machine.",
    "completion": "Print the completion for a shell, or install it.",
    "config": "Check and show the configuration.",
    "db": "Show and upgrade the catalog's schema.",
    "roots": "Show the roots of the catalog; take one out of it.",
    "service": "Run featd as a systemd service.",
    "ray": "Run seats on a Ray cluster.",
}
_MODULES = {"resume": "pause", "logs": "journal"}


class Commands(typer.core.TyperGroup):
    """The group `featd`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(Any, _Built())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands in a help text, without building them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


class _Built(MutableMapping[str, Any]):
    """Name -> command, built when it is looked up."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name)
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in HELP

    def __iter__(self) -> Iterator[str]:
        return iter(HELP)

    def __len__(self) -> int:
        return len(HELP)


def _build(name: str) -> Any:
    if name not in HELP:
        raise KeyError(name)
    own = name.replace("-", "_")
    module = importlib.import_module(f"featd_cli.{_MODULES.get(name, own)}")
    holder = typer.Typer(rich_markup_mode=None)
    if hasattr(module, "app"):
        holder.add_typer(module.app, name=name)
    else:
        holder.command(name)(getattr(module, own))
    return typer.main.get_group(holder).commands[name]
