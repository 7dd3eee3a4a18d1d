"""Forks the children, reaps them, starts them again, and stops them in order. Single-threaded for life.

Knows no database, engine, HDF5 or watchdog: a child is a name and a function. Whoever must be told of
deaths (the janitor) is told through its inbox.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featd import clock, logs
from featd.errors import EXIT_BAD_CONFIG, EXIT_ERROR, EXIT_OK, EXIT_OUT_OF_REACH
from featd.processes.child import Child, ChildSpec
from featd.processes.last_words import telling
from featd.processes.link import Channel, ChildLink
from featd.processes.oom import OomWatch
from featd.processes.signals import HANDLED, SignalQueue, name_of
from featd.supervisor.deaths import Why, explain
from featd.supervisor.rollout import Change, Refusal, Reload, Rollout
from featd.supervisor.state_file import StateFile, trouble
from featd.supervisor.systemd import Notifier

log = logs.get("supervisor")

MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""A child that lived this long after it was ready has paid off its earlier deaths."""
STANDSTILL_SECONDS = 5.0
"""A turn that took longer than this was not ours to take: nobody ran."""
OOM_LOOK_SECONDS = 5.0
ABORT_SECONDS = 5.0
"""Between SIGABRT, which leaves a stack dump, and SIGKILL."""
PATIENCE_BOOT_FAILURES = 3
"""So many boots of a worker may fail before systemd's start timeout is no longer put off."""


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
        notifier: Notifier | None = None,
        reload: Reload | None = None,
    ) -> None:
        self._run_folder = run_folder
        self._stop_seconds = stop_seconds
        self._deaths_to = deaths_to
        self._max_boot_failures = max_boot_failures
        self._on_escalate = on_escalate
        self._close_in_children = tuple(close_in_children)
        self._notifier = notifier or Notifier()
        self._reload = reload
        self._refusal = ""
        self._reading = self._reloading = False
        self._began = False
        self._said = ""
        self._state_file = StateFile(run_folder)
        self._reports = Channel()
        self.children = {spec.name: Child(spec) for spec in specs}
        self._rollout = Rollout(self.children)
        self._signals = SignalQueue(HANDLED)
        self.failure = ""
        """Why it ended by itself."""
        self._stopping_since: float | None = None
        self._exit_code = EXIT_OK
        self._oom = OomWatch(OOM_LOOK_SECONDS)
        self._turned_at: float | None = None

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
        self._notice_standstill(now)
        for number in self._signals.take():
            self.handle_signal(number, now)
        self._hear()
        self._reap(now)
        self._abort_hung(now)
        if self._stopping_since is None:
            self._turn_reload(now)
            self._start_due(now)
            self._stop_without_essentials(now)
        else:
            self._stop_ladder(now)
        self._tell(now)
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
        if self._reload is not None:
            self._reload.close()
        self._state_file.remove()
        self._reports.close()
        for child in self.children.values():
            child.close()

    # Signals

    def handle_signal(self, number: int, now: float) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._handle_stop(number, now)
            case signal.SIGHUP:
                self._handle_reload()
            case _:
                pass  # SIGCHLD: it has ended the wait, which is all it is for

    def _handle_stop(self, number: int, now: float) -> None:
        if self._stopping_since is not None:
            log.warning(
                "stop", "asked to stop a second time: leaving now, the next start recovers what is open"
            )
            for child in self.children.values():
                if child.lease is not None:
                    self._on_escalate(child.lease)  # what is in hand must not be charged for our haste
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
            self._notifier.stopping()
            if self._reload is not None:
                self._reload.close()

    # A new configuration

    def _handle_reload(self) -> None:
        if self._reload is None or self._stopping_since is not None:
            log.warning("reload", "a drain, and a featd that is stopping, keep their configuration")
            return
        log.info("reload", "reading the configuration; what runs goes on meanwhile")
        self._reload.begin()
        self._reading = self._reloading = True
        if self._began:
            self._notifier.reloading()

    def _turn_reload(self, now: float) -> None:
        if self._reload is not None and self._reading:
            match self._reload.step():
                case Refusal(reason):
                    self._reading = False
                    log.error("reload", "the new configuration is refused, the old one stays", reason=reason)
                    self._refusal = f"the new configuration is refused: {reason}"
                case Change() as change:
                    self._reading = False
                    log.info("reload", change.message, children=[spec.name for spec in change.specs])
                    self._refusal = ""
                    self._stop_seconds = change.stop_seconds
                    self._rollout.begin(change, now)
        for child in self._rollout.to_end():
            self._urge(child, now)
        if self._reloading and not self._reading and self._rollout.is_over():
            self._reloading = False
            if not self._refusal and not self._rollout.stalled():
                log.info("reload", "the new configuration is in force")
            if self._began:
                self._notifier.ready()

    # What others are told

    def _tell(self, now: float) -> None:
        """systemd, and whoever reads the state file."""
        essential = [child for child in self.children.values() if child.spec.essential]
        began = self._began or not essential or any(child.ready for child in essential)
        reload = self._refusal or self._rollout.stalled()
        if self._stopping_since is not None:
            status = "stopping: finishing the batches in flight"
        else:
            if self._reloading or (
                not began and any(c.boot_failures < PATIENCE_BOOT_FAILURES for c in essential)
            ):
                self._notifier.still_starting(now)
            said = [self._said or ("working" if began else "starting: loading the net")]
            said += [text for text in (trouble(self.children.values(), now), reload) if text]
            status = "; ".join(said)
        self._notifier.status(status, now)
        if not any(self._neglected(child, now) for child in self.children.values()):
            self._notifier.alive(now)
        self._state_file.write(now, status, reload, self.children.values())
        if began and not self._began and self._stopping_since is None:
            self._began = True
            self._notifier.ready()

    def _neglected(self, child: Child, now: float) -> bool:
        """It makes no progress and nobody here does anything about it: then we are not well ourselves."""
        acted_on = child.aborted_at is not None or child.asked_at is not None
        return child.pid is not None and not acted_on and child.heartbeat.overdue(now)

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
                    child.why = child.last_words = ""
                    log.info("ready", "it is at work", child=child.spec.name, pid=child.pid)
                case "lease":
                    child.lease = {"id": record["id"], "token": record["token"]}
                case "status":
                    self._said = record["text"]
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
        if os.getpid() == 1 and not self._reading:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """As a container's first process: the decoders of a worker that was killed are ours to reap. Not while a
        configuration is read, for that has a process of its own."""
        ours = {child.pid for child in self.children.values()}
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid in ours:
                    return  # the next turn's
                os.waitpid(dead.si_pid, 0)

    def _bury(self, child: Child, code: int, now: float) -> None:
        child.end_stderr()
        why, what = explain(child, code, self._stop_seconds, self._oom)
        fields = {"child": child.spec.name, "pid": child.pid, "why": what}
        words = telling("\n".join(child.words))
        if why is not Why.FINISHED and words:
            fields["last_words"] = words
        lived = now - child.started_at
        was_ready = child.ready
        replaced, child.restarting = child.restarting, False
        self._tell_death(child, why, what)
        child.forget_process()
        if why is Why.FINISHED and (child.spec.once or self._stopping_since is not None):
            child.finished = True
            log.info("finished", "it has done its work", **fields)
            return
        if self._stopping_since is not None:
            log.warning("died", "it will not be started again: featd is stopping", **fields)
            return
        if replaced and why in (Why.FINISHED, Why.STOPPED):
            log.info("replaced", "it starts again with the new configuration", **fields)
            child.start_at = now
            return
        child.why, child.last_words = what, words
        if code == EXIT_BAD_CONFIG:
            child.given_up = code
            log.error("down", "only a person can mend this; it stays down", **fields)
            return
        if was_ready and lived > STEADY_SECONDS:
            child.deaths = 0
        child.deaths += 1
        child.boot_failures += not was_ready
        limit = self._max_boot_failures if child.spec.essential else None
        if limit is not None and child.boot_failures >= limit:
            child.given_up = code if code > 0 else EXIT_ERROR
            log.error("down", "it died at every start; it stays down", starts=child.boot_failures, **fields)
            return
        delay = self._backoff(child)
        child.start_at = now + delay
        log.warning("died", "it will be started again", in_seconds=delay, **fields)

    def _backoff(self, child: Child) -> float:
        return float(min(MIN_BACKOFF_SECONDS * 2 ** min(child.deaths - 1, 20), MAX_BACKOFF_SECONDS))

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

    def _notice_standstill(self, now: float) -> None:
        """Where everything stood still (a frozen container, a suspended host) the children get that time back."""
        if self._turned_at is not None and now - self._turned_at > STANDSTILL_SECONDS:
            for child in self.children.values():
                child.heartbeat.postpone(now - self._turned_at)
        self._turned_at = now
        self._oom.look(now)

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
        """Where no worker can ever start, or what workers wait for cannot, there is nothing to go on for."""
        essential = [child for child in self.children.values() if child.spec.essential]
        needed = {name for child in essential for name in child.spec.after}
        lost = {child.given_up for child in essential}
        if None in lost or not essential:
            lost = {self.children[name].given_up for name in needed} - {None}
        if lost:
            log.error("stop", "no worker could start: see what each said above")
            down = (child for child in self.children.values() if child.given_up is not None)
            self.failure = "; ".join(
                f"{child.spec.name}: {child.why}" + (f": {child.last_words}" if child.last_words else "")
                for child in down
            )
            code = lost.pop() if len(lost) == 1 else None
            self.stop(code if code in (EXIT_BAD_CONFIG, EXIT_OUT_OF_REACH) else EXIT_ERROR, now)

    # Starts and stops

    def _start_due(self, now: float) -> None:
        for child in self.children.values():
            if child.pid is not None or child.over or now < child.start_at:
                continue
            before = (self.children[name] for name in child.spec.after)
            if not all(other.ready or other.finished for other in before):
                continue
            try:
                child.start(now, functools.partial(self._link, child), self._close_in_children)
            except OSError as error:
                child.deaths += 1
                child.why = f"no process can be made: {error.strerror}"
                child.start_at = now + self._backoff(child)
                log.error("not_started", "trying again", child=child.spec.name, error=str(error))

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
            self._urge(child, now)

    def _urge(self, child: Child, now: float) -> None:
        """One turn of the ladder for one child."""
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
