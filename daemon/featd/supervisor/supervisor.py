"""Forks the children, reaps them, restarts them, and stops them in order. Single-threaded for life.

Knows no database, engine, HDF5 or watchdog: a child is a name and a function. The child that must know of deaths (the
janitor) is told through its inbox.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from featd import clock, logs
from featd.errors import EXIT_BAD_CONFIG, EXIT_ERROR, EXIT_OK, EXIT_OUT_OF_REACH
from featd.processes.child import Child, ChildSpec
from featd.processes.devices import of_label
from featd.processes.last_words import telling
from featd.processes.link import Channel, ChildLink
from featd.processes.oom import OomWatch
from featd.processes.records import (
    Death,
    Fruitful,
    LeaseOpened,
    MemoryShort,
    Proven,
    Ready,
    Refused,
    Report,
    StatusLine,
    StopRequest,
    Why,
)
from featd.processes.signals import HANDLED, SignalQueue, has_terminal, name_of
from featd.processes.throwaway import Answer
from featd.states import Lease
from featd.supervisor import deaths
from featd.supervisor.rollout import Reload, Rollout
from featd.supervisor.state_file import StateFile, trouble
from featd.supervisor.systemd import Notifier

log = logs.get("supervisor")

MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""A child that lived this long after it was ready starts again without delay."""
STANDSTILL_SECONDS = 5.0
"""A turn that took longer than this means that no process ran: a frozen container, a suspended host."""
OOM_LOOK_SECONDS = 5.0
ABORT_SECONDS = 5.0
"""Between SIGABRT, which leaves a stack dump, and SIGKILL."""
PATIENCE_BOOT_FAILURES = 3
"""After so many failed starts of every worker, systemd's start timeout is no longer extended."""


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
        set_aside_after: int = 0,
        on_escalate: Callable[[Lease], None] = lambda lease: None,
        close_in_children: Sequence[int] = (),
        notifier: Notifier | None = None,
        reload: Reload | None = None,
        prover: str | None = None,
        on_proven: Callable[[], None] = lambda: None,
    ) -> None:
        """prover: the worker that must report that everything is right before anything else begins. Where it refuses,
        `refusal` says why, and `on_proven` is not called."""
        self.children = {spec.name: Child(spec) for spec in specs}
        self.rollout = Rollout(self.children, reload, stop_seconds)
        self.failure = ""
        """Why it ended by itself."""
        self.refusal: Answer | None = None
        """How the prover ended, if nothing began."""
        self._prover = self.children[prover] if prover is not None else None
        """Until it has reported that everything is right."""
        self._on_proven = on_proven
        self._run_folder = run_folder
        self._deaths_to = deaths_to
        self._max_boot_failures = max_boot_failures
        self._set_aside_after = set_aside_after
        self._on_escalate = on_escalate
        self._close_in_children = tuple(close_in_children)
        self._notifier = notifier or Notifier()
        self._state_file = StateFile(run_folder)
        self._reports = Channel()
        self._signals = SignalQueue(HANDLED)
        self._had_terminal = has_terminal()
        self._oom = OomWatch(OOM_LOOK_SECONDS)
        self._working = False
        """Whether a worker was ever ready; before that featd is starting."""
        self._status_line = ""
        self._stopping_since: float | None = None
        self._exit_code = EXIT_OK
        self._turned_at: float | None = None

    # The loop

    def run(self) -> int:
        """Until everything is over; returns the exit code."""
        with self:
            while (code := self.step(clock.monotonic())) is None:
                self.wait(0.25)
        return code

    def __enter__(self) -> Self:
        self._signals.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._signals.__exit__(None, None, None)
        self.rollout.close()
        self._state_file.remove()
        self._reports.close()
        for child in self.children.values():
            child.close()

    def step(self, now: float) -> int | None:
        """One turn: signals, news, deaths, hangs, starts, stops. The exit code when all is over."""
        self._notice_standstill(now)
        for number in self._signals.take():
            self.handle_signal(number, now)
        self._hear(now)
        self._reap(now)
        self.abort_hung(now)
        if self._stopping_since is None:
            if self._prover is None:
                self._turn_rollout(now)
            self._start_due(now)
            self._let_go()
            self._stop_without_essentials(now)
        else:
            self._stop_ladder(now)
        self._tell(now)
        over = all(child.pid is None for child in self.children.values()) and (
            self._stopping_since is not None or all(child.over for child in self.children.values())
        )
        return self._exit_code if over else None

    def wait(self, seconds: float) -> None:
        """Until a signal, a report or words of a child arrive, or `seconds` have passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals.fileno(), selectors.EVENT_READ)
            selector.register(self._reports.read_fd, selectors.EVENT_READ)
            for child in self.children.values():
                if child.stderr_fd is not None:
                    selector.register(child.stderr_fd, selectors.EVENT_READ)
            selector.select(seconds)

    # Signals

    def handle_signal(self, number: int, now: float) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._handle_stop(number, now)
            case signal.SIGHUP if self._had_terminal and not has_terminal():
                self._handle_stop(number, now)
            case signal.SIGHUP:
                self._handle_reload()
            case _:
                pass  # SIGCHLD has ended the wait, and needs no more

    def _handle_stop(self, number: int, now: float) -> None:
        if self._stopping_since is not None:
            log.warning(
                "stop_forced",
                "asked to stop a second time: exiting now; the next start recovers what is open",
            )
            for child in self.children.values():
                self._excuse(child)
                child.kill(signal.SIGKILL)
            os._exit(EXIT_ERROR)
        log.info(
            "stop_requested",
            "stopping: finishing the batches in flight and sealing their shards",
            signal=name_of(number),
        )
        self.stop(EXIT_OK if self._max_boot_failures is None else EXIT_ERROR, now)

    def stop(self, code: int, now: float) -> None:
        """Begin the stop ladder; `code` is the exit code in the end."""
        if self._stopping_since is None:
            self._stopping_since = now
            self._exit_code = code
            self._notifier.stopping()
            self.rollout.close()

    def _handle_reload(self) -> None:
        if self._stopping_since is not None or not self.rollout.ask():
            log.warning("reload_ignored", "a drain, or a featd that is stopping, keeps its configuration")
            return
        log.info("reload_started", "SIGHUP: reading the configuration again; everything keeps running")
        if self._working:
            self._notifier.reloading()

    def _turn_rollout(self, now: float) -> None:
        was_active = self.rollout.active
        self.rollout.step(now)
        for child in self.children.values():
            if child.restarting:
                self._urge(child, now)
        if was_active and not self.rollout.active and self._working:
            self._notifier.ready()

    # What others are told

    def _tell(self, now: float) -> None:
        """Tell systemd, and whoever reads the state file."""
        essential = [child for child in self.children.values() if child.spec.essential]
        working = self._working or not essential or any(child.ready for child in essential)
        if self._stopping_since is not None:
            status = "stopping: finishing the batches in flight"
        else:
            patient = any(child.boot_failures < PATIENCE_BOOT_FAILURES for child in essential)
            if self.rollout.active or (not working and patient):
                self._notifier.still_starting(now)
            first = self._status_line or ("working" if working else "starting: loading the net")
            texts = (first, trouble(self.children.values(), now), self.rollout.verdict)
            status = "; ".join(text for text in texts if text)
        self._notifier.status(status, now)
        if not any(self._neglected(child, now) for child in self.children.values()):
            self._notifier.alive(now)
        self._state_file.write(now, status, self.rollout.verdict, self.children.values())
        if working and not self._working and self._stopping_since is None:
            self._working = True
            self._notifier.ready()

    def _neglected(self, child: Child, now: float) -> bool:
        """Whether a child makes no progress and this supervisor does nothing about it, so is not well itself."""
        acted_on = child.aborted_at is not None or child.asked_at is not None
        return child.pid is not None and not acted_on and child.heartbeat.overdue(now)

    # News from children

    def _hear(self, now: float) -> None:
        for child in self.children.values():
            child.read_stderr(quiet=child is self._prover)
        for report in self._reports.receive():
            if isinstance(report, Report) and report.pid == self.children[report.child].pid:
                self._take(self.children[report.child], report, now)

    def _take(self, child: Child, report: Report, now: float) -> None:
        match report.news:
            case Proven() if child is self._prover:
                self._prover = None
                with contextlib.suppress(OSError):
                    sys.stderr.write("".join(f"{line}\n" for line in child.words))
                self._on_proven()
            case Refused(text, of_device):
                child.refusal, child.refused_for_device = text, of_device
            case Ready():
                child.ready = True
                child.boot_failures = 0
                child.why = child.last_words = ""
                log.info("child_ready", f"{child.spec.name} is ready", child=child.spec.name, pid=child.pid)
            case LeaseOpened(lease):
                child.lease = lease
            case Fruitful():
                child.fruitless = 0
            case MemoryShort():
                child.halvings += 1
            case StatusLine(text):
                self._status_line = text
            case StopRequest(code, message) if self._stopping_since is None:
                tell = log.warning if code else log.info
                tell("drain_finished", message, exit_code=code)
                self.stop(code, now)

    # Deaths

    def _reap(self, now: float) -> None:
        for child in self.children.values():
            if child.pid is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._bury(child, os.waitstatus_to_exitcode(status), now)
        if os.getpid() == 1 and not self.rollout.reading:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """As the first process of a container: reap decoders whose worker was killed. Not while a configuration is
        read, for that has a process of its own."""
        ours = {child.pid for child in self.children.values()}
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid in ours:
                    return  # the next turn reaps it
                os.waitpid(dead.si_pid, 0)

    def _bury(self, child: Child, code: int, now: float) -> None:
        child.end_stderr(quiet=child is self._prover)
        why, what = deaths.explain(child, code, self.rollout.stop_seconds, self._oom)
        if child is self._prover and self._stopping_since is None:
            if (other := self._other_prover(child, why, what)) is None:
                self._bury_prover(child, why, what, code, now)
                return
            self._prover = other
        if self.refusal is not None:
            child.forget_process()
            child.finished = True
            return
        name = child.spec.name
        fields = {"child": name, "pid": child.pid}
        words = telling("\n".join(child.words))
        if why is not Why.FINISHED:
            fields |= {"why": what, "last_words": words} if words else {"why": what}
        lived = now - child.started_at
        was_ready = child.ready
        replaced, child.restarting = child.restarting, False
        self._tell_death(child, why, what)
        child.forget_process()
        if why is Why.FINISHED and (child.spec.once or self._stopping_since is not None):
            child.finished = True
            log.info("child_finished", f"{name} {what}", **fields)
            return
        if self._stopping_since is not None:
            log.warning("child_lost", f"{name} died while featd was stopping", **fields)
            return
        if replaced and why in (Why.FINISHED, Why.STOPPED):
            log.info(
                "child_replaced",
                f"{name} {what}; starting its successor with the new configuration",
                child=name,
                old_pid=fields["pid"],
            )
            child.start_at = now
            return
        child.why, child.last_words = what, words
        child.deaths_ever += 1
        if was_ready and lived > STEADY_SECONDS:
            child.deaths = child.fruitless = 0
        if code != EXIT_BAD_CONFIG and deaths.count(child, why, code, what, words, was_ready):
            self._tell_of_memory(child)
        self._start_again_or_give_up(child, code, fields, now)

    def _start_again_or_give_up(self, child: Child, code: int, fields: Mapping[str, Any], now: float) -> None:
        """What comes after a death that nobody asked for. `fields`: of the log."""
        name = child.spec.name
        if code == EXIT_BAD_CONFIG:
            child.given_up = code
            log.error(
                "child_misconfigured",
                f"{name}: configuration error; not starting it again: correct the configuration, then reload",
                **fields,
            )
            return
        if 0 < self._set_aside_after <= child.fruitless:
            child.given_up = code if code > 0 else EXIT_ERROR
            deaths_in_a_row = f"{child.fruitless} deaths in a row"
            child.why = f"{child.spec.device} is set aside after {deaths_in_a_row}, the last: {child.why}"
            log.error(
                "device_set_aside",
                f"{name} died again and again without a result; not starting it again: repair the device, then reload"
                " or restart featd",
                device=child.spec.device,
                deaths=child.fruitless,
                **fields,
            )
            return
        limit = self._max_boot_failures if child.spec.essential or child.spec.once else None
        starts = child.deaths if child.spec.once else child.boot_failures
        if limit is not None and starts >= limit:
            child.given_up = code if code > 0 else EXIT_ERROR
            log.error(
                "child_given_up",
                f"{name} died at every start; not starting it again",
                starts=starts,
                **fields,
            )
            return
        delay = self._backoff(child)
        child.start_at = now + delay
        log.warning("child_died", f"{name} died; starting it again in {delay:g} s", **fields)

    def _bury_prover(self, child: Child, why: Why, what: str, code: int, now: float) -> None:
        """Nothing has begun: it is tried again where memory was short for its batch, else this is the end."""
        words = telling("\n".join(child.words))
        refusal = child.refusal
        if child.hung:
            refusal, code = "the net was not loaded in time: its engine or its device hangs", EXIT_ERROR
        child.forget_process()
        if deaths.count(child, why, code, what, f"{words}\n{refusal}", was_ready=False):
            self._tell_of_memory(child)
            child.start_at = now
            return
        self.refusal = Answer(code, refusal, words)
        for other in self.children.values():  # they wait, with nothing in hand
            other.kill(signal.SIGKILL)
        self.stop(code if code > 0 else EXIT_ERROR, now)

    def _other_prover(self, child: Child, why: Why, what: str) -> Child | None:
        """A worker on a device that nobody has tried: it may prove that all is right but the device of `child`, which
        is then one of those that fail."""
        words = telling("\n".join(child.words))
        crashed = why is Why.CRASH and not deaths.may_be_halved(child, why, what, words)
        if not (child.refused_for_device or crashed):
            return None
        workers = [one for one in self.children.values() if one.spec.essential]
        tried = {of_label(one.spec.device) for one in workers if one.deaths_ever or one is child}
        return next((one for one in workers if of_label(one.spec.device) not in tried), None)

    def _tell_of_memory(self, child: Child) -> None:
        name = child.spec.name
        log.warning("child_lacked_memory", f"{name} ran out of memory; its batch is halved", child=name)

    def _backoff(self, child: Child) -> float:
        return float(min(MIN_BACKOFF_SECONDS * 2 ** min(child.deaths - 1, 20), MAX_BACKOFF_SECONDS))

    def _tell_death(self, child: Child, why: Why, what: str) -> None:
        if self._deaths_to is None:
            return
        if child.spec.name == self._deaths_to:
            # Its next process must hear again which children are finished.
            for other in self.children.values():
                if other.finished:
                    self._tell_death(other, Why.FINISHED, "finished")
            return
        words = self._run_folder / f"{child.spec.name}.words"
        with contextlib.suppress(OSError):
            words.write_text("\n".join(child.words), encoding="utf-8")
        death = Death(child.spec.name, why, what, child.lease, str(words))
        self.children[self._deaths_to].inbox.send(death)

    def _notice_standstill(self, now: float) -> None:
        """Where everything stood still, the children get that time back."""
        if self._turned_at is not None and now - self._turned_at > STANDSTILL_SECONDS:
            for child in self.children.values():
                child.heartbeat.postpone(now - self._turned_at)
        self._turned_at = now
        self._oom.look(now)

    def abort_hung(self, now: float) -> None:
        """Ask a child that missed its heartbeat for its stack (SIGABRT), then kill it."""
        for child in self.children.values():
            if child.pid is None:
                continue
            if child.aborted_at is not None:
                if now - child.aborted_at > ABORT_SECONDS:
                    child.kill(signal.SIGKILL)
            elif child.heartbeat.overdue(now):
                name = child.spec.name
                log.error("child_hung", f"{name} makes no progress; killing it", child=name, pid=child.pid)
                child.hung = True
                child.aborted_at = now
                child.kill(signal.SIGABRT)

    def _stop_without_essentials(self, now: float) -> None:
        """Stop where no worker can ever start, or where what workers or a drain wait for cannot."""
        essential = [child for child in self.children.values() if child.spec.essential]
        needed = {name for child in essential for name in child.spec.after}
        needed |= {child.spec.name for child in self.children.values() if child.spec.once}
        lost = {child.given_up for child in essential}
        if None in lost or not essential:
            lost = {self.children[name].given_up for name in needed} - {None}
        if lost:
            down = [child for child in self.children.values() if child.given_up is not None]
            self.failure = "; ".join(
                f"{child.spec.name}: {child.why}" + (f": {child.last_words}" if child.last_words else "")
                for child in down
            )
            log.error("start_failed", "processes that are needed cannot start; stopping", reason=self.failure)
            code = lost.pop() if len(lost) == 1 else None
            self.stop(code if code in (EXIT_BAD_CONFIG, EXIT_OUT_OF_REACH) else EXIT_ERROR, now)

    # Starts and stops

    def _start_due(self, now: float) -> None:
        for child in self.children.values():
            if child.pid is not None or child.over or now < child.start_at:
                continue
            if self._prover is not None and child.spec.essential and child is not self._prover:
                continue
            try:
                child.start(now, functools.partial(self._link, child), self._close_in_children)
            except OSError as error:
                child.deaths += 1
                child.why = f"cannot start a process: {error.strerror}"
                child.start_at = now + self._backoff(child)
                name = child.spec.name
                log.error(
                    "child_not_forked", f"cannot start {name}; trying again", child=name, error=str(error)
                )

    def _let_go(self) -> None:
        for child in self.children.values():
            if child.pid is None or child.may_go or self._prover is not None:
                continue
            before = (self.children[name] for name in child.spec.after)
            if all(other.ready or other.finished for other in before):
                child.go()

    def _link(self, child: Child) -> ChildLink:
        """What a new child talks through. Called in the child."""
        return ChildLink(
            child.spec.name,
            reports=self._reports,
            inbox=child.inbox,
            heartbeat=child.heartbeat,
            wake_fd=child.wake_fd,
            go_fd=child.go_fd,
            halvings=child.halvings,
            proves=child is self._prover,
            wake_fds={name: other.wake_fd for name, other in self.children.items() if other.spec.essential},
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
        if child.aborted_at is None and now - child.asked_at > self.rollout.stop_seconds:
            name = child.spec.name
            log.error("child_not_stopping", f"{name} does not stop; killing it", child=name, pid=child.pid)
            self._excuse(child)
            child.aborted_at = now
            child.kill(signal.SIGABRT)

    def _excuse(self, child: Child) -> None:
        """Before a kill that is ours: what the child has in hand must not be charged for it."""
        if child.lease is not None:
            self._on_escalate(child.lease)
