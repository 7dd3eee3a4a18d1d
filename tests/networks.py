"""Network namespaces as hosts of their own, whose cables can be cut. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from needs import missing


def need_networks() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        missing("the right to make network namespaces, and `ip` (Debian: iproute2)")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Network:
    """A network namespace, connected with this one by a cable."""

    name: str
    subnet: str
    """The first three numbers of its addresses; .1 is this side of the cable."""

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", "cable", "netns", self.name)
        ip("address", "add", f"{self.subnet}.1/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        ip("-n", self.name, "address", "add", f"{self.subnet}.2/24", "dev", "cable")
        ip("-n", self.name, "link", "set", "cable", "up")

    def remove(self) -> None:
        ip("link", "del", self.name)
        ip("netns", "del", self.name)

    def cut(self) -> None:
        """No packet arrives any more, in either direction, and nobody is told."""
        ip("link", "set", self.name, "down")

    def cut_replies(self) -> None:
        """What the host says arrives; what the database answers does not."""
        ip("route", "add", "blackhole", f"{self.subnet}.2/32")

    def lose(self, part: float) -> None:
        """This part of the packets is lost, in each direction."""
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = ("-m", "statistic", "--mode", "random", "--probability", f"{part}", "-j", "DROP")
            self._inside("iptables", "-w", "-A", chain, side, "cable", *rule)

    def slow_down(self, rate: str) -> None:
        """No more than so many bits per second, each way; packets wait up to a second."""
        shape = ("root", "tbf", "rate", rate, "burst", "4kb", "latency", "1s")
        self._inside("tc", "qdisc", "add", "dev", "cable", *shape)
        subprocess.run(["tc", "qdisc", "add", "dev", self.name, *shape], check=True, capture_output=True)

    def _inside(self, *command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True, capture_output=True)

    def mend(self) -> None:
        for command in (
            ["ip", "route", "del", "blackhole", f"{self.subnet}.2/32"],
            ["ip", "netns", "exec", self.name, "iptables", "-w", "-F"],
            ["ip", "netns", "exec", self.name, "tc", "qdisc", "del", "dev", "cable", "root"],
            ["tc", "qdisc", "del", "dev", self.name, "root"],
        ):
            subprocess.run(command, capture_output=True, check=False)
        ip("link", "set", self.name, "up")
