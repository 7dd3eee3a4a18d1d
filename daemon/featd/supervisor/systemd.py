"""Talking to systemd (sd_notify(3)) by datagrams to a unix socket. Without a socket it does nothing. Never raises."""

from __future__ import annotations

import contextlib
import os
import socket

from featd import clock

EXTEND_SECONDS = 60.0
"""How much longer a start may take; sent repeatedly while a net loads."""
STATUS_EVERY_SECONDS = 1.0


class Notifier:
    """What the supervisor tells systemd. Removes its variables from the environment, so that children tell nothing."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        usec = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        mine = pid in ("", str(os.getpid()))
        self._watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() and mine else None
        self._watchdog_due = 0.0
        self._extend_due = 0.0
        self._status = ""
        self._status_due = 0.0

    def ready(self) -> None:
        """A worker can work; or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Until the next `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(clock.monotonic() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str, now: float) -> None:
        """One line for `systemctl status`; called every turn, sent when it has changed, once a second at most."""
        if text != self._status and now >= self._status_due:
            self._status, self._status_due = text, now + STATUS_EVERY_SECONDS
            self._send("STATUS=" + " ".join(text.split("\n")))

    def still_starting(self, now: float) -> None:
        """The start goes on; called every turn, sent every few seconds."""
        if now >= self._extend_due:
            self._extend_due = now + EXTEND_SECONDS / 4
            self._send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_SECONDS * 1e6)}")

    def alive(self, now: float) -> None:
        """The loop has come round; called every turn, sent four times per watchdog interval."""
        if self._watchdog_seconds is not None and now >= self._watchdog_due:
            self._watchdog_due = now + self._watchdog_seconds / 4
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as one:
            one.sendto(message.encode(errors="backslashreplace"), address)
