"""Why a child's process died."""

from __future__ import annotations

import signal

from featd.errors import EXIT_OUT_OF_REACH
from featd.processes.child import Child
from featd.processes.oom import OomWatch, says_out_of_memory
from featd.processes.records import Why
from featd.processes.signals import OWN, name_of


def count(child: Child, why: Why, code: int, what: str, words: str, was_ready: bool) -> bool:
    """Add a death to what is known of a child. True where memory was short, and a smaller batch may be enough: then
    neither the start nor the device is to blame."""
    child.deaths += 1
    if may_be_halved(child, why, what, words):
        child.halvings += 1
        return True
    child.boot_failures += not was_ready
    child.fruitless += child.spec.essential and is_of_the_device(why, code, was_ready)
    return False


def may_be_halved(child: Child, why: Why, what: str, words: str) -> bool:
    """Whether memory was short, and a smaller batch can be tried."""
    return child.halvings < child.spec.most_halvings and is_of_memory(why, what, words)


def is_of_the_device(why: Why, code: int, was_ready: bool) -> bool:
    """Whether a worker's death may be its device's fault. Not where catalog or store were out of reach, where it was
    stopped or killed from outside, or where it crashed at work: then its images are suspected first."""
    if why is Why.CRASH:
        return not was_ready
    return why is Why.EXITED and code > 0 and code != EXIT_OUT_OF_REACH


def is_of_memory(why: Why, what: str, words: str) -> bool:
    """Whether memory was short: the kernel killed the process, its engine aborted it and said so, or its last error was
    this."""
    if why is Why.CRASH:
        return says_out_of_memory(f"{what}\n{words}")
    return why is Why.EXITED and says_out_of_memory(words.rpartition("\n")[2])


def explain(child: Child, code: int, stop_seconds: float, oom: OomWatch) -> tuple[Why, str]:
    """The reason as a word and as a phrase. `code`: its exit code, or minus the signal that ended it."""
    if code >= 0:
        return (Why.FINISHED, "finished") if code == 0 else (Why.EXITED, f"exit code {code}")
    number = -code
    if child.hung:
        return Why.CRASH, "made no progress and was killed"
    if child.aborted_at is not None:
        return Why.STOPPED, f"did not stop within {stop_seconds:g} s and was killed"
    if number == signal.SIGTERM and child.asked_at is not None:
        return Why.FINISHED, "stopped before it was ready"
    if number in OWN:
        return Why.CRASH, f"died of {name_of(number)}"
    if number == signal.SIGKILL:
        if oom.has_killed():
            return Why.CRASH, "killed by the kernel: out of memory"
        return (
            Why.KILLED,
            "killed by SIGKILL from outside featd: by a person, a limit or the kernel (see `journalctl -k`)",
        )
    return Why.EXITED, f"ended by {name_of(number)}"
