"""Runs checks, each in a process of its own: one that fails, crashes or hangs is a line and not the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from featd import clock
from featd.doctor.finding import About, Finding, Level, error, told
from featd.errors import EXIT_OK, FeatdError, reason
from featd.processes.signals import name_of
from featd.processes.throwaway import Throwaway

AT_ONCE = 16
"""Checks that run at the same time."""
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """`look` runs in a process of its own and may take so many seconds. `slow` is the way out where it takes longer."""

    about: About
    look: Callable[[], Iterable[Finding]]
    slow: str
    seconds: float = SECONDS


def run_all(checks: Sequence[Check]) -> Iterator[Finding]:
    """What all checks find, in their order. At most AT_ONCE run at the same time, so that together they take about as
    long as the slowest."""
    for first in range(0, len(checks), AT_ONCE):
        begin = clock.monotonic()
        running = [(check, _started(check)) for check in checks[first : first + AT_ONCE]]
        try:
            while running:
                check, process = running.pop(0)
                if isinstance(process, Throwaway):
                    yield from _findings(check, process, begin)
                else:
                    yield process
        finally:
            for _, process in running:
                if isinstance(process, Throwaway):
                    process.end()


def _started(check: Check) -> Throwaway | Finding:
    def work() -> str:
        os.dup2(2, 1)  # what a library prints must not come between the lines of the report
        try:
            found = list(check.look())
        except FeatdError as problem:
            found = [told(check.about, problem)]
        except OSError as problem:
            place = f"{os.fsdecode(problem.filename)}: " if problem.filename else ""
            found = [error(check.about, f"{place}{reason(problem)}", "check its path, owner and mode")]
        return json.dumps([asdict(finding) for finding in found])

    try:
        return Throwaway(work)
    except OSError as problem:
        why = f"not checked, as no process can be started: {reason(problem)}"
        return error(check.about, why, "check the limits of this user: `ulimit -a`")


def _findings(check: Check, process: Throwaway, begin: float) -> Iterator[Finding]:
    try:
        answer = process.wait(max(0.0, begin + check.seconds - clock.monotonic()), "the check")
    except FeatdError:
        yield error(check.about, f"no answer within {check.seconds:g} s", check.slow)
        return
    if answer.code == EXIT_OK:
        for found in json.loads(answer.text):
            yield Finding(About(found["check"]), Level(found["level"]), found["text"], found["way_out"])
        return
    why = answer.text or answer.last_words or f"exit code {answer.code}"
    if answer.code < 0:
        why = f"its process was ended by {name_of(-answer.code)}: {answer.last_words or 'no last words'}"
    yield error(check.about, f"the check failed: {why}", "please report this as a bug of featd")
