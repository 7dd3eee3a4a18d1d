"""The actor of one seat: keeps an unmodified `featd run --seat NAME --roles work` running where Ray has placed it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featd import clock
from featd.errors import EXIT_BAD_CONFIG, EXIT_USAGE

NEEDS_A_PERSON = (EXIT_USAGE, EXIT_BAD_CONFIG)
"""Exit codes after which no retry helps, on whatever node."""
FIRST_DELAY_SECONDS = 5.0
MOST_DELAY_SECONDS = 60.0
DRAIN_LOOK_SECONDS = 5.0
LAST_WORDS = 20
"""Lines of featd's output that are kept, to show its error message."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the seats of one cluster have in common."""

    config: str
    """The absolute path of the configuration, the same on every node."""
    gpus: float
    cpus: float


class Seat:
    """A detached actor. Each method returns at once; one thread runs featd and lives as long as the actor.

    The thread must not end: the kernel tells the shim of the end of the thread that started it, not of the process.
    """

    def __init__(self, name: str, spec: dict[str, Any]) -> None:
        """`spec`: of Spec, as a dict: Ray ends an actor that lacks its class, and starts one for ever that lacks that
        of an argument."""
        self._name, self._spec = name, Spec(**spec)
        self._lock = threading.Lock()
        self._told = threading.Event()
        self._wanted = True
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=LAST_WORDS)
        self._state, self._reason, self._starts = "running", "", 0
        threading.Thread(target=self._keep, daemon=True).start()
        threading.Thread(target=self._leave_a_draining_node, daemon=True).start()

    def __repr__(self) -> str:
        """What Ray's dashboard and Ray's logs call the actor."""
        return f"featd {self._name}"

    def status(self) -> dict[str, Any]:
        """What `featd ray status` shows of this seat."""
        process = self._process
        return {
            "seat": self._name,
            "state": self._state,
            "reason": self._reason,
            "host": socket.gethostname(),
            "pid": None if process is None else process.pid,
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "starts": self._starts,
            "spec": asdict(self._spec),
        }

    def stop(self, reason: str = "") -> None:
        """Let featd stop in order and not start again; `status` says when it has stopped."""
        with self._lock:
            self._wanted = False
            if self._process is None:
                self._state = "stopped"
            else:
                self._state = "stopping"
                self._process.terminate()
            self._reason = self._reason or reason
        self._told.set()

    def resume(self) -> None:
        """Start featd again where it was stopped, for its own error or another's."""
        with self._lock:
            if not self._wanted:
                self._wanted, self._state, self._reason = True, "running", ""
            if self._process is None:
                self._told.set()

    def _keep(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            began = clock.monotonic()
            code = self._run()
            if code is not None and clock.monotonic() - began > MOST_DELAY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            wait = self._judge(code, delay)
            if wait is not None:
                delay = min(2 * delay, MOST_DELAY_SECONDS)
            self._told.wait(wait)
            self._told.clear()

    def _run(self) -> int | None:
        """Run featd to its end; returns its exit code, None where it must not run."""
        featd = [sys.executable, "-P", "-m", "featd_cli.main", "--config", self._spec.config]
        featd += ["run", "--seat", self._name, "--roles", "work"]
        with self._lock:
            if not self._wanted:
                return None
            self._state, self._starts = "running", self._starts + 1
            self._lines.clear()
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "featd.placement.shim", str(os.getpid()), *featd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                start_new_session=True,
                env=_environment(),
            )
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._lines.append(line)
                print(line, end="", flush=True)  # into Ray's log of this actor
        return process.wait()

    def _judge(self, code: int | None, delay: float) -> float | None:
        """What becomes of the seat after featd has ended: the seconds until it is started again, None for never."""
        with self._lock:
            self._process = None
            if not self._wanted or code is None:
                self._state = "stopped"
                return None
            self._reason = f"exit code {code}: {self._error()}"
            if code not in NEEDS_A_PERSON:
                self._state = "retrying"
                print(f"featd ended with {self._reason}; starting it again in {delay:g} s", flush=True)
                return delay
            self._wanted, self._state = False, "refused"
        print(f"featd ended with {self._reason}; stopping all seats", flush=True)
        _stop_others(self._name, f"stopped because of {self._name}, which ended with {self._reason}")
        return None

    def _error(self) -> str:
        """What featd said last: its error message, else its last line."""
        lines = [line.rstrip("\n") for line in self._lines]
        at = max((at for at, line in enumerate(lines) if line.startswith("featd: ")), default=len(lines) - 1)
        return " ".join(lines[at:]).removeprefix("featd: ") if lines else "no message"

    def _leave_a_draining_node(self) -> None:
        """Stop featd when Ray announces the end of this node (a spot notice, `ray drain-node`, SIGTERM for `ray start
        --block`), and end the actor as a crash does: Ray starts it again on another node."""
        here = _node()
        while here not in _draining():
            clock.sleep(DRAIN_LOOK_SECONDS)
        print("this node is draining; stopping featd, so that the seat moves to another node", flush=True)
        self.stop("its node is draining")
        while self._process is not None:
            clock.sleep(0.1)
        os._exit(1)  # sys.exit(0) would end the actor for good


def _environment() -> dict[str, str]:
    """The actor's environment, with the GPUs that Ray gave it. Not OMP_NUM_THREADS where Ray itself has set it, to 1:
    featd chooses its threads."""
    environment = dict(os.environ)
    if b"\0OMP_NUM_THREADS=" not in b"\0" + Path("/proc/self/environ").read_bytes():
        environment.pop("OMP_NUM_THREADS", None)
    return environment


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _draining() -> set[str]:
    """The ids of the nodes that are to end soon; none while Ray's head is out of reach."""
    from ray._private.state import state  # Ray has no public way; its own Train and Serve use this one

    try:
        return set(state.get_draining_nodes())
    except Exception:
        return set()


def _stop_others(name: str, reason: str) -> None:
    import ray

    for other in ray.util.list_named_actors():
        if other != name:
            try:
                ray.get_actor(other).stop.remote(reason)
            except ValueError:
                continue  # it has ended
