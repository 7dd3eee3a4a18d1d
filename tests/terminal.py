"""A terminal for tests: a command in a pty, what it draws fed through an emulator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from typing import Any

import pyte

from running import wait_for


class Terminal:
    """`output` is all that was written; `lines()` is what stands on the screen."""

    def __init__(self, command: Sequence[str], columns: int = 80, rows: int = 24, **environment: str) -> None:
        self.output = b""
        self._hung_up = False
        self._master, slave = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._size(columns, rows)
        # Not the emulator's business: it ends with the command, the terminal's modes do not.
        self._slave = slave
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self._begin,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )

    @staticmethod
    def _begin() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what runs in its background ignore Ctrl-C

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """As when a window is drawn larger; the kernel sends SIGWINCH."""
        self.screen.resize(rows, columns)
        self._size(columns, rows)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self, seconds: float = 0.05) -> bytes:
        """What was written since; waits for at most `seconds` for it."""
        found = b""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                chunk = os.read(self._master, 65536)
            except OSError:
                break
            if not chunk:
                break
            found += chunk
            seconds = 0.0
        self._stream.feed(found)
        self.output += found
        return found

    def lines(self) -> list[str]:
        self.read()
        return [line.rstrip() for line in self.screen.display]

    def text(self) -> str:
        return "\n".join(self.lines())

    def wait(self, condition: Callable[[str], Any], seconds: float = 30.0, what: str = "the screen") -> str:
        """The screen for which `condition` first holds."""
        text = ""

        def looked() -> bool:
            nonlocal text
            text = self.text()
            return bool(condition(text))

        try:
            wait_for(looked, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen shows:\n{text}") from None
        return text

    def end(self, seconds: float = 20.0) -> int:
        """The exit code of the command, which was told to end."""

        def over() -> bool:
            self.read()
            return self.process.poll() is not None

        wait_for(over, seconds, "the end of the command")
        self.read()
        return int(self.process.returncode)

    def modes_now(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def hang_up(self) -> None:
        """As when the window is closed."""
        for fd in (self._slave, self._master):
            os.close(fd)
        self._hung_up = True

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        if not self._hung_up:
            self.hang_up()
