"""The way in: `featd`. The commands stand in featd_cli.commands."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from featd import logs
from featd.crash_points import check_variable
from featd.errors import EXIT_ERROR, EXIT_OK, EXIT_OUT_OF_REACH, FeatdError, first_line, reason
from featd_cli.commands import Commands
from featd_cli.console import be_quiet, complain, note

INTERRUPTED = 130

EPILOG = """\b
Exit codes:
  0   success
  1   an error; no worker could start; a drain stopped early
  2   wrong usage of the command line
  3   nothing matched; `featd status --exit-code`: not running
  4   drained, and failed images remain; a backup lacks shards; `featd verify`
      found faults; `featd adopt` left rows
  75  catalog or store out of reach; a drain was paused, or lacks room: try
      again later
  78  bad configuration, including a missing or unsupported model, a wrong
      blob, another fingerprint, schema or store
  130 interrupted
"""

app = typer.Typer(
    name="featd",
    cls=Commands,
    help="Turns folders of images into CNN feature vectors with Caffe models, for as long as images keep arriving.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,  # featd_cli.completion: no shell evaluates a value, and none waits for rich
    rich_markup_mode=None,  # a [folder] in a path is no markup
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from featd import __version__  # here: to look for it takes longer than most commands need to begin

        typer.echo(f"featd {__version__}")
        raise typer.Exit


@app.callback()
def featd(
    ctx: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="PATH",
            help="The configuration file. Default: FEATD_CONFIG, ./featd.toml, ~/.config/featd/featd.toml,"
            " /etc/featd/featd.toml.",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print only results, warnings and errors: no notes, no progress."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also log what is done, with details, to standard error."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    check_variable()
    if quiet and verbose:
        raise typer.BadParameter("cannot be combined with --verbose", param_hint="--quiet")
    be_quiet(quiet)
    logs.force("warning" if quiet else "debug" if verbose else None)
    if quiet or verbose:
        logs.setup()
    ctx.obj = config_file


def _show_usage_error(error: Any, arguments: list[str]) -> int:
    """Print an error of usage, with what is wanted in the words of the help; returns its exit code."""
    command, name = typer.main.get_command(app), "featd"
    for word in arguments:
        if word in getattr(command, "commands", {}):
            command, name = command.commands[word], f"{name} {word}"  # type: ignore[attr-defined]
    option = getattr(error, "option_name", None)
    wanted: Any = next((one for one in command.params if option in one.opts), getattr(error, "param", None))
    error.message = error.message.removeprefix("Value error, ")
    if wanted is not None and not error.message:
        error.message = wanted.help or ""  # an argument is missing
    elif wanted is not None and error.message.endswith("requires an argument."):
        error.message = f"Option '{option}' needs a value, {wanted.metavar or wanted.name}: {wanted.help}"
    if option in ("-q", "-v", "--quiet", "--verbose"):
        error.message += f" here: it stands before the command, as in `featd {option} status`."
    if getattr(error, "ctx", None) is None:  # then Typer does not say which command it was
        note(f"Usage: {name} [OPTIONS] ...\nTry '{name} -h' for help.\n")
    error.show()
    return int(error.exit_code)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Every error ends here, as a message and a code."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if os.environ.get("_FEATD_COMPLETE"):  # a shell asks: see completion.py
        from featd_cli import completion

        words = sys.argv[1:] if arguments is None else arguments
        return _flushed(completion.answer(typer.main.get_command(app), words))
    try:
        code = app(arguments, prog_name="featd", standalone_mode=False)
        return _flushed(code if isinstance(code, int) else EXIT_OK)
    except SystemExit as ended:
        return _flushed(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    except FeatdError as error:
        complain(str(error))
        return _flushed(error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        named = isinstance(error.filename, str | bytes)
        complain(f"{os.fsdecode(error.filename)}: {reason(error)}" if named else reason(error))
        return EXIT_ERROR
    except Exception as error:
        if hasattr(error, "show"):  # Typer's errors of usage, whose class depends on its version
            return _show_usage_error(error, sys.argv[1:] if arguments is None else arguments)
        if _is_database_error(error):
            complain(f"the catalog is out of reach: {first_line(getattr(error, 'orig', error))}")
            return EXIT_OUT_OF_REACH
        traceback.print_exc()
        complain("this is a bug in featd: please report it with the lines above")
        return EXIT_ERROR


def _open_what_is_closed() -> None:
    """Let a standard stream that was closed (`featd run 2>&-`) lead nowhere. Else the catalog or a shard would be
    opened under its number, and libraries write to numbers 1 and 2."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)
            setattr(sys, name, os.fdopen(lowest_free, mode))


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone: print nothing more, not even when Python flushes at its end.
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        return EXIT_ERROR


def _is_database_error(error: Exception) -> bool:
    if "sqlalchemy" not in sys.modules:
        return False
    from sqlalchemy.exc import DBAPIError

    return isinstance(error, DBAPIError)


if __name__ == "__main__":
    sys.exit(main())
