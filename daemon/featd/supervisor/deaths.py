"""Why a child's process died, and so what the janitor charges the images in its hands for."""

from __future__ import annotations

import enum
import signal

from featd.processes.child import Child
from featd.processes.oom import OomWatch
from featd.processes.signals import OWN, name_of


class Why(enum.StrEnum):
    """What the janitor charges the images for."""

    FINISHED = "finished"  # exit code 0
    EXITED = "exited"  # another exit code
    CRASH = "crash"  # its own signal, hanging, or out of memory
    KILLED = "killed"  # a SIGKILL that nobody here sent
    STOPPED = "stopped"  # the stop ladder


def explain(child: Child, code: int, stop_seconds: float, oom: OomWatch) -> tuple[Why, str]:
    """As a word and as a sentence. `code`: its exit code, or minus the signal that ended it."""
    if code >= 0:
        return (Why.FINISHED, "finished") if code == 0 else (Why.EXITED, f"exit code {code}")
    number = -code
    if child.hung:
        return Why.CRASH, "made no progress and was killed"
    if child.aborted_at is not None:
        return Why.STOPPED, f"did not stop within {stop_seconds:g} s and was killed"
    if number == signal.SIGTERM and child.asked_at is not None:
        return Why.FINISHED, "stopped before it had begun"
    if number in OWN:
        return Why.CRASH, f"died of {name_of(number)}"
    if number == signal.SIGKILL:
        if oom.has_killed():
            return Why.CRASH, "killed by the kernel: out of memory"
        return Why.KILLED, "killed by SIGKILL from outside"
    return Why.EXITED, f"ended by {name_of(number)}"
