"""A real Ray cluster on this machine: each node is a `ray start --block`, with GPUs that are only numbers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from needs import missing
from running import wait_for

MARK = "OF_RAY_NODE"
PATIENT = {"RAY_raylet_start_wait_time_s": "180"}  # a machine may be busy with other tests


def need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray is not installed (pip install ray)")


@dataclass
class Node:
    """`mark`: in the environment of everything that the node runs, whatever becomes of its parents."""

    mark: str
    process: subprocess.Popen[bytes]
    output: Path
    network: str = ""

    def processes(self, of: str = "") -> list[int]:
        """The pids of what runs on the node, of programs with `of` in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}\0".encode() not in (entry / "environ").read_bytes():
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if command and of in command:
                found.append(int(entry.name))
        return found

    def kill(self, of: str = "", number: int = signal.SIGKILL) -> None:
        """All of them at once."""
        for pid in self.processes(of):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def lose(self) -> None:
        """As when its power is cut."""
        wait_for(lambda: self.kill() or not self.processes(), 30, "the end of a node")
        self.process.wait(10)


@dataclass
class Cluster:
    """The head has no GPU; `env`: what commands need to find it."""

    env: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    nodes: list[Node] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))

    def start_head(self) -> Node:
        with socket.create_server((self.address, 0)) as free:
            port = free.getsockname()[1]
        self.env["RAY_ADDRESS"] = f"{self.address}:{port}"
        return self._start(
            "--head",
            f"--port={port}",
            f"--temp-dir={self.folder}",
            "--num-gpus=0",
            "--include-dashboard=false",
        )

    def add(
        self, gpus: int, network: str = "", address: str = "127.0.0.1", env: dict[str, str] | None = None
    ) -> Node:
        """A node with `gpus` false GPUs, in a network namespace if one is named."""
        arguments = (f"--address={self.env['RAY_ADDRESS']}", f"--num-gpus={gpus}")
        return self._start(*arguments, network=network, address=address, env=env)

    def _start(
        self, *arguments: str, network: str = "", address: str = "", env: dict[str, str] | None = None
    ) -> Node:
        mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--num-cpus=4", "--object-store-memory=80000000"]
        command += [f"--node-ip-address={address or self.address}", *arguments]
        output = self.folder / f"{mark}.out"
        with output.open("w") as out:
            process = subprocess.Popen(
                [*(["ip", "netns", "exec", network] if network else []), *command],
                stdout=out,
                stderr=out,
                env={**os.environ, **PATIENT, **self.env, **(env or {}), MARK: mark},
                start_new_session=True,
            )
        node = Node(mark, process, output, network)
        self.nodes.append(node)
        wait_for(
            lambda: "Ray runtime started" in output.read_text() or process.poll() is not None,
            180,
            "a Ray node",
        )
        assert process.poll() is None, output.read_text()
        return node

    def log(self) -> str:
        """What the actors printed, on all nodes."""
        files: Sequence[Path] = list(self.folder.glob("session_*/logs/worker-*"))
        return "".join(file.read_text(errors="replace") for file in files)

    def end(self) -> None:
        for node in self.nodes:
            node.lose()
        shutil.rmtree(self.folder, ignore_errors=True)
