"""The part of a dead process's stderr that explains its death, for the image's row, the lease, the log and status."""

from __future__ import annotations

import re

KEPT = 800
"""Characters that go on a row."""

_GLOG_FATAL = re.compile(r"F\d{4,8} ")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WARNING = re.compile(r"\[W:|\bW\d{4,8} |Warning: |\bWARNING\b|\btelemetry\b", re.IGNORECASE)
_STACK = ("*** Check failure stack trace", "Extension modules:", "Thread 0x", "Current thread 0x")
_PYTHON_FATAL = "Fatal Python error"
_TRACEBACK = "Traceback (most recent call last):"


def telling(words: str) -> str:
    """Caffe's (glog's) fatal line if there is one; else the last lines, with only the top of a stack."""
    # Native code need not have ended its line when Python's dump begins.
    words = _COLOURS.sub("", words).replace(_PYTHON_FATAL, f"\n{_PYTHON_FATAL}")
    lines = [line.rstrip() for line in words.splitlines() if line.strip()]
    fatal = [line for line in lines if _GLOG_FATAL.match(line)]
    if fatal:
        return "\n".join(fatal)[:KEPT]
    # Libraries warn long before the end; the cause comes last.
    lines = [line for line in lines if not _WARNING.search(line)] or lines
    for at, line in enumerate(lines):
        if line.startswith(_PYTHON_FATAL):
            # The lines before it, then the top of the stack: a dump begins with the newest call.
            around = [*lines[max(0, at - 3) : at], *lines[at : at + 6]]
            return "\n".join(line for line in around if not line.startswith(_STACK))[:KEPT]
    if _TRACEBACK in lines[:-1]:
        after_last = lines[:-1][::-1].index(_TRACEBACK) + 1
        return "\n".join(line for line in lines[-after_last:] if not line.startswith(" "))[:KEPT]
    spoken = [line for line in lines if not line.startswith(_STACK)]
    return "\n".join(spoken)[-KEPT:]
