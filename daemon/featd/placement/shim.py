"""The process between a Ray actor and its featd: `python -m featd.placement.shim PARENT COMMAND...`.

When an actor ends, Ray kills the actor's children with SIGKILL, which would leave featd's leases open until they
expire. This process is the child that is killed; the kernel then sends SIGTERM to featd, which stops in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from featd.processes.signals import die_with_parent


def run(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, or is told to stop by the end of this process; returns its exit code."""
    die_with_parent(parent)
    shim = os.getpid()
    # This process has one thread, so that code may run between fork and exec.
    child = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(shim, signal.SIGTERM))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: child.send_signal(number))
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
