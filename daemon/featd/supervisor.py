"""Forks the children, reaps them, starts them again, and stops them in order. Single-threaded for life.

Knows no database, engine, HDF5 or watchdog: a child is a name and a function. Whoever must be told of
deaths (the janitor) is told through its inbox.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import selectors
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featd import clock, logs
from featd.child import Child, ChildSpec
from featd.errors import EXIT_BAD_CONFIG, EXIT_ERROR, EXIT_OK
from featd.link import Channel, ChildLink
from featd.oom import oom_kills
from featd.signals import SignalQueue, name_of

log = logs.get("supervisor")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
OWN_SIGNALS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
"""What a process dies of by its own doing."""

MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""A child that lived this long after it was ready has paid off its earlier deaths."""
ABORT_SECONDS = 5.0
"""Between SIGABRT, which leaves a stack dump, and SIGKILL."""


class Why(enum.StrEnum):
    """Why a child is dead: what the janitor charges the images in its hands for."""

    FINISHED = "finished"  # exit code 0
    EXITED = "exited"  # another exit code
    CRASH = "crash"  # its own signal, hanging, or out of memory
    KILLED = "killed"  # a SIGKILL that nobody here sent
    STOPPED = "stopped"  # the stop ladder


class Supervisor:
    """Runs `specs` until told to stop. `step(now)` is one turn; `run()` owns the loop."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        run_folder: Path,
        stop_seconds: float,
        deaths_to: str | None = None,
        max_boot_failures: int | None = None,
        on_escalate: Callable[[Mapping[str, Any]], None] = lambda lease: None,
        close_in_children: Sequence[int] = (),
    ) -> None:
        self._run_folder = run_folder
        self._stop_seconds = stop_seconds
        self._deaths_to = deaths_to
        self._max_boot_failures = max_boot_failures
        self._on_escalate = on_escalate
        self._close_in_children = tuple(close_in_children)
        self._reports = Channel()
        self.children = {spec.name: Child(spec) for spec in specs}
        self._signals = SignalQueue(SIGNALS)
        self._stopping_since: float | None = None
        self._exit_code = EXIT_OK
        self._oom_kills = oom_kills()

    # The loop

    def run(self) -> int:
        """Until everything is over; returns the exit code."""
        with self._signals:
            while True:
                code = self.step(clock.monotonic())
                if code is not None:
                    self._close()
                    return code
                self._wait(0.25)

    def step(self, now: float) -> int | None:
        """One turn: signals, news, deaths, hangs, starts, stops. The exit code when all is over."""
        for number in self._signals.take():
            self.handle_signal(number, now)
        self._hear()
        self._reap(now)
        self._abort_hung(now)
        if self._stopping_since is None:
            self._start_due(now)
            self._stop_without_essentials(now)
        else:
            self._stop_ladder(now)
        if all(child.pid is None for child in self.children.values()) and self._is_over():
            return self._exit_code
        return None

    def _is_over(self) -> bool:
        return self._stopping_since is not None or all(child.over for child in self.children.values())

    def _wait(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals.fileno(), selectors.EVENT_READ)
            selector.register(self._reports.read_fd, selectors.EVENT_READ)
            for child in self.children.values():
                if child.stderr_fd is not None:
                    selector.register(child.stderr_fd, selectors.EVENT_READ)
            selector.select(seconds)

    def _close(self) -> None:
        self._reports.close()
        for child in self.children.values():
            child.close()

    # Signals

    def handle_signal(self, number: int, now: float) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._handle_stop(number, now)
            case signal.SIGHUP:
                log.warning(
                    "reload", "a running featd keeps its configuration: restart it to apply a new one"
                )
            case _:
                pass  # SIGCHLD: it has ended the wait, which is all it is for

    def _handle_stop(self, number: int, now: float) -> None:
        if self._stopping_since is not None:
            log.warning(
                "stop", "asked to stop a second time: leaving now, the next start recovers what is open"
            )
            for child in self.children.values():
                child.kill(signal.SIGKILL)
            os._exit(EXIT_ERROR)
        log.info("stop", "finishing the batches in flight and sealing their shards", signal=name_of(number))
        early = EXIT_ERROR if self._max_boot_failures is not None else EXIT_OK
        self.stop(early, now)

    def stop(self, code: int, now: float) -> None:
        """Begin the stop ladder; `code` is the exit code in the end."""
        if self._stopping_since is None:
            self._stopping_since = now
            self._exit_code = code

    # News from children

    def _hear(self) -> None:
        for child in self.children.values():
            child.read_stderr()
        for record in self._reports.receive():
            child = self.children[record["child"]]
            if record["pid"] != child.pid:
                continue
            match record["event"]:
                case "ready":
                    child.ready = True
                    child.boot_failures = 0
                    log.info("ready", "it is at work", child=child.spec.name, pid=child.pid)
                case "lease":
                    child.lease = {"id": record["id"], "token": record["token"]}
                case "stop":
                    log.info("stop", record["message"], asked_by=child.spec.name)
                    self.stop(int(record["code"]), clock.monotonic())

    # Deaths

    def _reap(self, now: float) -> None:
        for child in self.children.values():
            if child.pid is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._bury(child, os.waitstatus_to_exitcode(status), now)

    def _bury(self, child: Child, code: int, now: float) -> None:
        child.end_stderr()
        why, what = self._explain(child, code)
        fields = {"child": child.spec.name, "pid": child.pid, "why": what}
        if why is not Why.FINISHED and child.words:
            fields["last_words"] = child.words[-1]
        lived = now - child.started_at
        was_ready = child.ready
        self._tell_death(child, why, what)
        child.forget_process()
        if why is Why.FINISHED and (child.spec.once or self._stopping_since is not None):
            child.finished = True
            log.info("finished", "it has done its work", **fields)
            return
        if self._stopping_since is not None:
            log.warning("died", "it will not be started again: featd is stopping", **fields)
            return
        if code == EXIT_BAD_CONFIG:
            child.given_up = code
            log.error("down", "only a person can mend this; it stays down", **fields)
            return
        if was_ready and lived > STEADY_SECONDS:
            child.deaths = 0
        child.deaths += 1
        child.boot_failures += not was_ready
        if self._max_boot_failures is not None and child.boot_failures >= self._max_boot_failures:
            child.given_up = code if code > 0 else EXIT_ERROR
            log.error("down", "it died at every start; it stays down", starts=child.boot_failures, **fields)
            return
        delay = min(MIN_BACKOFF_SECONDS * 2 ** (child.deaths - 1), MAX_BACKOFF_SECONDS)
        child.start_at = now + delay
        log.warning("died", "it will be started again", in_seconds=delay, **fields)

    def _explain(self, child: Child, code: int) -> tuple[Why, str]:
        """Why a process died, as a word and as a sentence."""
        kills = oom_kills()
        out_of_memory, self._oom_kills = kills > self._oom_kills, kills
        if code >= 0:
            return (Why.FINISHED, "finished") if code == 0 else (Why.EXITED, f"exit code {code}")
        number = -code
        if child.hung:
            return Why.CRASH, "made no progress and was killed"
        if child.aborted_at is not None:
            return Why.STOPPED, f"did not stop within {self._stop_seconds:g} s and was killed"
        if number == signal.SIGTERM and child.asked_at is not None:
            return Why.FINISHED, "stopped before it had begun"
        if number in OWN_SIGNALS:
            return Why.CRASH, f"died of {name_of(number)}"
        if number == signal.SIGKILL:
            if out_of_memory:
                return Why.CRASH, "killed by the kernel: out of memory"
            return Why.KILLED, "killed by SIGKILL from outside"
        return Why.EXITED, f"ended by {name_of(number)}"

    def _tell_death(self, child: Child, why: Why, what: str) -> None:
        if self._deaths_to is None:
            return
        if child.spec.name == self._deaths_to:
            # Its next process must hear again what is over for good.
            for other in self.children.values():
                if other.finished:
                    self._tell_death(other, Why.FINISHED, "finished")
            return
        words = self._run_folder / f"{child.spec.name}.words"
        with contextlib.suppress(OSError):
            words.write_text("\n".join(child.words), encoding="utf-8")
        self.children[self._deaths_to].inbox.send(
            {
                "event": "death",
                "child": child.spec.name,
                "why": why,
                "what": what,
                "lease": child.lease,
                "words": str(words),
            }
        )

    def _abort_hung(self, now: float) -> None:
        """A child that did not come round in time is asked for its stack (SIGABRT), then killed."""
        for child in self.children.values():
            if child.pid is None:
                continue
            if child.aborted_at is not None:
                if now - child.aborted_at > ABORT_SECONDS:
                    child.kill(signal.SIGKILL)
            elif child.heartbeat.overdue(now):
                log.error("hung", "it makes no progress: killing it", child=child.spec.name, pid=child.pid)
                child.hung = True
                child.aborted_at = now
                child.kill(signal.SIGABRT)

    def _stop_without_essentials(self, now: float) -> None:
        essential = [child for child in self.children.values() if child.spec.essential]
        if essential and all(child.given_up is not None for child in essential):
            code = essential[0].given_up or EXIT_ERROR
            bad = all(child.given_up == EXIT_BAD_CONFIG for child in essential)
            log.error("stop", "no worker could start: see what each said above")
            self.stop(code if bad else EXIT_ERROR, now)

    # Starts and stops

    def _start_due(self, now: float) -> None:
        for child in self.children.values():
            if child.pid is not None or child.over or now < child.start_at:
                continue
            before = (self.children[name] for name in child.spec.after)
            if all(other.ready or other.finished for other in before):
                child.start(now, functools.partial(self._link, child), self._close_in_children)

    def _link(self, child: Child) -> ChildLink:
        """What a fresh child talks through. Called in the child."""
        wakes = {name: other.wake_fd for name, other in self.children.items() if other.spec.essential}
        return ChildLink(
            child.spec.name,
            reports=self._reports,
            inbox=child.inbox,
            heartbeat=child.heartbeat,
            wake_fd=child.wake_fd,
            wake_fds=wakes,
        )

    def _stop_ladder(self, now: float) -> None:
        """SIGTERM; after stop_seconds SIGABRT for a stack dump; then SIGKILL. Those marked `last` come last."""
        alive = [child for child in self.children.values() if child.pid is not None]
        first = [child for child in alive if not child.spec.last]
        for child in first or alive:
            if child.asked_at is None:
                child.asked_at = now
                child.kill(signal.SIGTERM)
            if child.aborted_at is None and now - child.asked_at > self._stop_seconds:
                log.error("stop", "it does not stop: killing it", child=child.spec.name, pid=child.pid)
                if child.lease is not None:
                    # Into the hands file first: what is in hand must not be charged for our impatience.
                    self._on_escalate(child.lease)
                child.aborted_at = now
                child.kill(signal.SIGABRT)
