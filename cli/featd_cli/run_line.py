"""`featd run` in a terminal: the daemon is a child, whose log becomes one line that moves, with warnings above it.

The daemon has a process group of its own: this process passes on the signals that it gets, prints what the log says
that a person should see, and ends with the daemon's exit code. Where it dies, the kernel kills the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from featd import daemon, logs
from featd.config import Settings, load
from featd.config_faults import ENV_PREFIX
from featd.errors import FeatdError
from featd.processes.signals import SignalQueue, has_terminal, name_of
from featd.processes.throwaway import fork
from featd_cli.console import complain, shown

if TYPE_CHECKING:
    from featd_cli.status_watch import Looker

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIPE_BYTES = 1 << 20
"""So much of the log waits while this process is stopped (Ctrl-Z), before the daemon waits, too."""
EVERY_SECONDS = 1.0
INTERRUPTED = 130
CLEAR = "\r\x1b[K"
COLOURS = {"warning": "yellow", "error": "red"}
TOLD = ("drain_finished", "featd_stopped", "featd_resumed", "reload_started", "reload_applied")
"""Events that are printed although they are no warnings."""
STANDARD = ("time", "level", "logger", "pid", "event", "message", "traceback", "exit_code")
"""What is printed otherwise than as a field, or not at all."""


def suits(settings: Settings, stream: TextIO) -> bool:
    """Whether the line is shown in place of the log: in a terminal whose keys reach this process, and where neither the
    configuration nor -q or -v asks for another log. Not as a container's first process, which the daemon must be itself
    to reap what others leave."""
    return (
        (settings.log.format, settings.log.level) == ("auto", "info")
        and not logs.is_forced()
        and os.getpid() != 1
        and stream.isatty()
        and os.environ.get("TERM") not in (None, "", "dumb")
        and not logs.goes_to_journal(stream)
        and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        and has_terminal()
        and _in_foreground(stream)
    )


def _in_foreground(stream: TextIO) -> bool:
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    return False


def run(
    settings: Settings,
    stream: TextIO,
    *,
    drain: bool,
    config: Path,
    seat: str | None = None,
    roles: Collection[str] = daemon.ROLES,
) -> int:
    """Run the daemon under the line; returns its exit code, 128 + N where signal N killed it."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(read_fd, False)
    with SignalQueue((*PASSED_ON, signal.SIGCHLD)) as signals:
        try:
            # Before anything that it must not have is loaded here: the database, threads.
            pid = fork(lambda: _daemon(config, drain, seat, roles), write_fd, (read_fd, signals.fileno()))
        finally:
            os.close(write_fd)
        try:
            with _looking(settings, seat) as looker:
                status = _Line(pid, read_fd, signals, looker, stream, drain=drain).run()
        finally:
            os.close(read_fd)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code not in PASSED_ON:
        complain(f"featd was ended by {name_of(-code)}; the next start recovers what is open")
    return code if code >= 0 else 128 - code


def _daemon(config: Path, drain: bool, seat: str | None, roles: Collection[str]) -> int:
    """In the child."""
    os.setpgid(0, 0)  # Ctrl-C reaches the line alone, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[f"{ENV_PREFIX}LOG__FORMAT"] = "json"  # also after a reload
    try:
        return daemon.run(load(config), drain=drain, config=config, seat=seat, roles=roles)
    except FeatdError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


@contextlib.contextmanager
def _looking(settings: Settings, seat: str | None) -> Iterator[Looker]:
    from featd_cli.instance import Instance, open_catalog
    from featd_cli.status_watch import Looker

    with open_catalog(settings) as catalog:
        looker = Looker(Instance(settings, catalog), seat)
        looker.start()
        try:
            yield looker
        finally:
            looker.stop()


class _Line:
    """`run` returns the daemon's wait status."""

    def __init__(
        self, pid: int, log_fd: int, signals: SignalQueue, looker: Looker, stream: TextIO, *, drain: bool
    ) -> None:
        from rich.console import Console

        self._pid = pid
        self._log_fd = log_fd
        self._signals = signals
        self._looker: Looker | None = looker
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._drain = drain
        self._blocks = "utf" in (stream.encoding or "").lower()
        self._stopping = False
        self._partial = b""

    def run(self) -> int:
        from featd_cli import run_screen

        self._print(run_screen.head())
        waits: list[Any] = [self._signals, self._log_fd]
        while True:
            looker = [] if self._looker is None else [self._looker]
            select.select([*waits, *looker], [], [], EVERY_SECONDS)
            for number in self._signals.take():
                if number != signal.SIGCHLD:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._pid, number)
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not self._read_log() and self._log_fd in waits:
                waits.remove(self._log_fd)
            if ended:
                self._write(CLEAR)
                return status
            self._draw()

    def _read_log(self) -> bool:
        """Print what is new; False where nothing will come any more."""
        while True:
            try:
                chunk = os.read(self._log_fd, 1 << 16)
            except BlockingIOError:
                return True
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            if not chunk and self._partial:
                lines, self._partial = [self._partial], b""
            for line in lines:
                self._tell(line.decode(errors="backslashreplace"))
            if not chunk:
                return False

    def _tell(self, line: str) -> None:
        """One line of the log, or of what a library has written to standard error."""
        from featd_cli import run_screen

        try:
            record = json.loads(line)
            level, event = str(record["level"]), str(record["event"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._print(shown(line))
            return
        if event == "stop_requested":
            self._stopping = True
            self._print(run_screen.STOPS)
        elif event in TOLD and not (self._drain and event == "featd_stopped"):
            self._print(shown(str(record.get("message"))), COLOURS.get(level, ""))
        elif level in COLOURS:
            fields = [f"{name}={shown(str(value))}" for name, value in record.items() if name not in STANDARD]
            text = f"{run_screen.moment(record)} {level}: {shown(str(record.get('message')))}"
            self._print(f"{text} ({', '.join(fields)})" if fields else text, COLOURS[level])
            for more in str(record.get("traceback") or "").splitlines():
                self._print(f"  {shown(more)}")

    # The terminal

    def _draw(self) -> None:
        from featd_cli import run_screen

        if self._looker is None or not _in_foreground(self._stream):
            return
        try:
            look = self._looker.take()
            line = run_screen.line(
                look, self._width() - 1, drain=self._drain, stopping=self._stopping, blocks=self._blocks
            )
            self._write(CLEAR)
            self._console.print(line, end="\r", no_wrap=True, overflow="crop", crop=True)
        except Exception:  # the daemon says itself what is wrong; whatever happens here must not end it
            self._looker = None

    def _width(self) -> int:
        from featd_cli import run_screen

        return os.get_terminal_size(self._stream.fileno()).columns or run_screen.WIDTH

    def _print(self, text: str, colour: str = "") -> None:
        """Print above the line. Where the terminal has gone, nothing is printed any more."""
        from featd_cli.status_screen import wrap

        self._write(CLEAR)
        with contextlib.suppress(OSError):
            for line in wrap(text, self._width(), indent="  "):
                self._console.print(line, style=colour or None, soft_wrap=True)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
