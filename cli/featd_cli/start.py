"""What the executable `featd` calls first: Ctrl-C while its modules load ends it at once, without a traceback."""

from __future__ import annotations

import signal


def main() -> int:
    """Load the commands and run one; returns its exit code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # another one ignores it, as in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from featd_cli.main import main as run_command

    signal.signal(signal.SIGINT, handler)
    return run_command()
