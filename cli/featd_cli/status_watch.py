"""`featd status --watch`: status on one screen, updated. Off a terminal: one report after the other.

A thread reads and the main thread draws, so that the screen can say that a database or a mount does not answer, and a
key can end it even then.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from functools import partial
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

from featd import clock
from featd.processes.signals import SignalQueue
from featd.report import status, words
from featd.report.looking import EVERY_SECONDS, SILENT_SECONDS, Look, Looking, pause_after
from featd.report.status import Report
from featd.report.watched import Watched
from featd_cli import status_screen
from featd_cli.console import shown
from featd_cli.instance import Instance

HINT = "q or Ctrl-C ends"
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Looker(threading.Thread):
    """Makes a report about every second. `fileno()` is readable when there is a new one."""

    def __init__(self, instance: Instance, seat: str | None = None) -> None:
        """seat: of those of this host, only this one counts."""
        super().__init__(name="looker", daemon=True)
        self.latest: Look[Report] = Look()
        self.failure: Exception | None = None
        self._asked_at: float | None = None
        """When the report under way was begun."""
        watched = Watched.of(instance.settings, seat)
        make = partial(status.look, instance.catalog, watched, instance.faults)
        self._looking = Looking(instance.catalog, make)
        self._told_to_stop = threading.Event()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def run(self) -> None:
        pause = 0.0
        while not self._told_to_stop.wait(pause):
            self._asked_at = began = clock.monotonic()
            try:
                self.latest = self._looking.step()
            except Exception as error:
                self.failure = error
                return
            finally:
                self._asked_at = None
                os.eventfd_write(self._fd, 1)
            pause = pause_after(clock.monotonic() - began)

    def take(self) -> Look[Report]:
        """The latest report. Raises the error that ended the thread, if it has ended."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        if self.failure is not None:
            raise self.failure
        asked_at = self._asked_at
        silent = 0.0 if asked_at is None else clock.monotonic() - asked_at
        if silent < SILENT_SECONDS:
            return self.latest
        told = f"no answer for {words.duration(silent)}: the catalog, a root or the store does not respond"
        return Look(self.latest.report, self.latest.at, told)

    def stop(self) -> None:
        """End the thread; where it hangs, it ends with the process."""
        self._told_to_stop.set()
        self.join(0.5)


def watch(instance: Instance, *, blocks: bool) -> None:
    """Until a signal or `q` ends it."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    with SignalQueue((*ENDS, *((signal.SIGWINCH, signal.SIGTSTP) if terminal else ()))) as signals:
        looker = Looker(instance)
        looker.start()
        try:
            if terminal:
                _draw(looker, signals, blocks)
            else:
                _print(looker, signals, blocks)
        finally:
            looker.stop()


# On a terminal


def _draw(looker: Looker, signals: SignalQueue, blocks: bool) -> None:
    while _draw_until_left(looker, signals, blocks) == signal.SIGTSTP:
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when the process is continued


def _draw_until_left(looker: Looker, signals: SignalQueue, blocks: bool) -> int:
    """Returns the signal that ended it, or 0 for a key."""
    console = Console(force_terminal=True, highlight=False, markup=False, emoji=False)
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as keys:
        waits: list[Any] = [signals, looker, *keys]
        while True:
            with contextlib.suppress(
                OSError
            ):  # from the terminal itself, since COLUMNS does not change with it
                width, height = os.get_terminal_size(sys.stdout.fileno())
                if width and height:
                    console.size = ConsoleDimensions(width, height)
            screen = _screen(looker.take(), *console.size, blocks)
            live.update(Text("\n", no_wrap=True, overflow="crop").join(screen), refresh=True)
            ready, _, _ = select.select(waits, [], [], EVERY_SECONDS)
            for number in signals.take():
                if number != signal.SIGWINCH:
                    return number
            if keys and keys[0] in ready and os.read(keys[0], 64) in (b"", b"q", b"Q", b"\x04"):
                return 0


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """Standard input, key by key and without echo; nothing where it is not a terminal of this process."""
    fd = 0
    try:
        before = termios.tcgetattr(fd)
        mine = os.tcgetpgrp(fd) == os.getpgrp()
    except (OSError, termios.error):
        mine = False
    if not mine:
        yield []
        return
    tty.setcbreak(fd, termios.TCSADRAIN)
    try:
        yield [fd]
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _screen(look: Look[Report], width: int, height: int, blocks: bool) -> list[Text]:
    """All lines of the screen, the last one at its bottom."""
    top = _trouble(look, min(width, status_screen.MAX_WIDTH))
    if top and height >= status_screen.HIGH:
        top.append(Text())
    room = max(0, height - len(top) - 1)
    if look.report is not None:
        top += status_screen.fitted(look.report, blocks=blocks, width=width, height=room)
    elif look.trouble is None:
        top.append(Text("reading ..."))
    top = top[: height - 1]
    moment = f"as of {look.at.astimezone():%H:%M:%S}" if look.at else ""
    foot = Text(f"{moment:<18}{HINT}" if width >= 40 else HINT, "bright_black")
    return [*top, *[Text()] * (height - 1 - len(top)), foot]


def _trouble(look: Look[Report], width: int) -> list[Text]:
    if look.trouble is None:
        return []
    below = "; the report below is from then" if look.report is not None else ""
    told = shown(f"{look.trouble}. Trying again{below}.")
    return [Text(line, "bold red") for line in status_screen.wrap(told, width)]


# Off a terminal


def _print(looker: Looker, signals: SignalQueue, blocks: bool) -> None:
    """One report after the other, each with its time before it and an empty line after it."""
    waits: list[Any] = [signals, looker]
    while True:
        ready, _, _ = select.select(waits, [], [], SILENT_SECONDS)
        if any(number in ENDS for number in signals.take()):
            return
        look = looker.take()
        if looker not in ready and look.trouble is None:
            continue
        block = [Text(f"{clock.utcnow():%Y-%m-%dT%H:%M:%SZ}"), *_trouble(look, status_screen.WIDTH)]
        if look.report is not None and look.trouble is None:
            block += status_screen.lines(look.report, blocks=blocks)
        status_screen.show([*block, Text()])
        sys.stdout.flush()
