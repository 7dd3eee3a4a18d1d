"""`featd completion`: the shells' completion, and what they ask: which words may stand where the cursor is.

A shell calls `_FEATD_COMPLETE=1 featd WORD...` with the words up to the cursor, the last of which may be empty or only
begun, and gets one `value TAB help` per line; nothing where the shell should complete names of files. Nothing here
opens the catalog, and nothing prints an error.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from featd.states import Correction, Kind
from featd_cli.console import note, say, shown

VARIABLE = "_FEATD_COMPLETE"
FILES = Path(__file__).with_name("completions")

Candidates = Iterable[tuple[str, str]]
"""Values, each with its help."""


class Shell(StrEnum):
    """A shell that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_NAMES = {Shell.BASH: "featd.bash", Shell.ZSH: "_featd", Shell.FISH: "featd.fish"}


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    install: Annotated[
        bool, typer.Option("--install", help="Write it where your shell finds it, in your home folder.")
    ] = False,
) -> None:
    """Print the completion for a shell, or install it.

    It completes commands, options and, where they are known without the catalog, values: kinds, formats, blobs, roots.
    For this shell only: source <(featd completion bash)
    """
    text = (FILES / _NAMES[shell]).read_text(encoding="utf-8")
    if not install:
        say(text.rstrip())
        return
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    file = {
        Shell.BASH: data / "bash-completion/completions/featd",
        Shell.ZSH: data / "zsh/site-functions/_featd",
        Shell.FISH: settings / "fish/completions/featd.fish",
    }[shell]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    say(f"wrote {shown(str(file))}")
    note(shown(_then(shell, file)))


def _then(shell: Shell, file: Path) -> str:
    """What is left to do."""
    if shell is Shell.BASH:
        start = f"source {shlex.quote(str(file))}"
        return (
            f"new shells use it, if the package bash-completion is installed; else add to ~/.bashrc: {start}"
        )
    if shell is Shell.ZSH:
        start = f"fpath+=({shlex.quote(str(file.parent))}); autoload -Uz compinit; compinit"
        return f"add to ~/.zshrc, unless it is there: {start}"
    return "new shells use it"


def answer(root: Any, words: Sequence[str]) -> int:
    """Print what may stand at the end of `words`, below the command `root`; returns an exit code."""
    try:
        for value, told in candidates(root, words):
            if value.startswith(words[-1] if words else "") and value.isprintable():
                say(f"{value}\t{' '.join(told.split())}".rstrip())
    except Exception:  # a shell waits at its prompt, and has no place for errors
        return 1
    return 0


def candidates(root: Any, words: Sequence[str]) -> Candidates:
    """What may stand in place of the last word: values, each with its help."""
    *before, word = words or [""]
    command, option, seen = root, None, 0
    config: str | None = None
    for one in before:
        name, is_whole, value = one.partition("=")
        if option is not None:
            if option.opts == ["--config"]:
                config = one
            option = None
        elif one.startswith("-"):
            option = None if is_whole else _option(command, name)
            if is_whole and name == "--config":
                config = value
        elif hasattr(command, "commands"):
            command = command.commands.get(one)
            if command is None:
                return []
        else:
            seen += 1
    if option is not None:
        return _values(option, command, config)
    name, is_whole, _ = word.partition("=")
    if word.startswith("-") and is_whole:
        wanted = _option(command, name)
        values = [] if wanted is None else _values(wanted, command, config)
        return [(f"{name}={value}", told) for value, told in values]
    if word.startswith("-"):
        return [
            (opt, one.help or "") for one in _options(command) for opt in one.opts if opt.startswith("--")
        ]
    if hasattr(command, "commands"):
        return [(name, one.get_short_help_str(limit=100)) for name, one in command.commands.items()]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if not arguments or (seen >= len(arguments) and arguments[-1].nargs == 1):
        return []
    return _values(arguments[min(seen, len(arguments) - 1)], command, config)


def _options(command: Any) -> Iterator[Any]:
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            yield one


def _option(command: Any, name: str) -> Any | None:
    """The option of this name, if a value must follow it."""
    return next((one for one in _options(command) if name in one.opts and not one.is_flag), None)


def _values(parameter: Any, command: Any, config: str | None) -> Candidates:
    hint = get_type_hints(command.callback).get(parameter.name)
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return [(str(choice), "") for choice in kind]
    find = _KNOWN.get((command.name, parameter.name)) or _KNOWN.get(("", parameter.name))
    return [] if find is None else [(value, "") for value in find(config)]


def _document(config: str | None) -> Mapping[str, Any]:
    """The configuration, unchecked."""
    import tomllib

    from featd.config_file import find, read_text

    return tomllib.loads(read_text(find(Path(config).expanduser() if config else None)))


def _roots(config: str | None) -> list[str]:
    roots = _document(config).get("roots", [])
    return [str(root["path"]) for root in (roots if isinstance(roots, list) else [roots])]


def _blobs(config: str | None) -> list[str]:
    model = _document(config).get("model", {})
    blobs = model.get("blobs") or model.get("net", "gist")
    return [blobs] if isinstance(blobs, str) else [str(blob) for blob in blobs]


def _kinds(_: str | None) -> list[str]:
    return [*sorted({kind.partition(".")[0] for kind in Kind} - set(Kind)), *Kind]


def _instances(_: str | None) -> list[str]:
    from featd_cli.service import ETC

    return sorted(file.stem for file in ETC.glob("*.toml") if file.stem != "featd")


def _corrections(_: str | None) -> list[str]:
    return ["all", *Correction]


_KNOWN: dict[tuple[str, str], Callable[[str | None], list[str]]] = {
    ("", "kind"): _kinds,
    ("", "blob"): _blobs,
    ("", "root"): _roots,
    ("", "instance"): _instances,
    ("", "requeue"): _corrections,
    ("", "keep"): _corrections,
    ("", "preset"): lambda _: ["fast", "caffe-transform", "pycaffe"],
    ("init", "blob"): lambda _: [],
    ("remove", "root"): lambda _: [],
    ("scan", "path"): _roots,
    ("init", "net"): lambda _: ["gist"],
    ("net", "file"): lambda _: ["gist"],
}
"""By command and parameter, or by parameter alone: the values that are known without the catalog."""
