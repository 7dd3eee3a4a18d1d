"""What `featd ray` does to the seats of a cluster. The seats are the named actors of one namespace; Ray keeps no other
state of ours, and what the seats have done is in the catalog."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from featd import clock
from featd.errors import ClusterUnavailableError, ConfigError, first_line
from featd.placement.seat import Seat, Spec

ANSWER_SECONDS = 5.0
"""A seat that is placed answers within this time."""
KNOCK_SECONDS = 10.0


@contextlib.contextmanager
def connected(instance: str) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or that this machine is a node of. `instance`: the id of this featd; another
    one's seats on the same cluster are not seen. ConfigError without Ray; ClusterUnavailableError."""
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed: `pip install 'featd[ray]'`, on every node") from None
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(
            address="auto",
            namespace=f"featd-{instance}",
            log_to_driver=False,
            configure_logging=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterUnavailableError(
            f"no Ray cluster answers: {first_line(error)}\nRun this on a node of the cluster (`ray start --head` begins"
            " one), or set RAY_ADDRESS to the address of its head; RAY_AUTH_MODE and the token must be those of the"
            " cluster"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def is_open() -> bool:
    """Whether whoever reaches the cluster's ports may run programs on it."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return not is_token_auth_enabled()


def names() -> list[str]:
    """The seats that there are, whether Ray has placed them or not."""
    import ray

    return sorted(filter(re.compile(r"ray-\d+").fullmatch, ray.util.list_named_actors()), key=_number)


def start(count: int, spec: Spec) -> list[str]:
    """See that the seats 0 to `count` - 1 are there and run. Those that run are left alone. Returns the names of all
    seats that there are then."""
    import ray

    actor = ray.remote(Seat)
    wanted = [f"ray-{number}" for number in range(count)]
    for name in wanted:
        options = actor.options(
            name=name,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            num_gpus=spec.gpus,
            num_cpus=spec.cpus,
            scheduling_strategy="SPREAD",
        )
        options.remote(name, asdict(spec)).resume.remote()
    return [*wanted, *(name for name in names() if name not in wanted)]


def states(wanted: list[str], seconds: float = ANSWER_SECONDS) -> list[dict[str, Any]]:
    """What each seat says of itself; what Ray says of those that do not answer within `seconds`."""
    import ray

    asked: dict[str, Any] = {}
    for name in wanted:
        with contextlib.suppress(ValueError):  # Ray knows it no more
            asked[name] = ray.get_actor(name).status.remote()
    ready = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)[0] if asked else []
    return [_answer(name, asked.get(name), ready) for name in wanted]


def _answer(name: str, reference: Any, ready: list[Any]) -> dict[str, Any]:
    import ray

    failed = {
        "seat": name,
        "state": "failed",
        "reason": "its actor did not start: is featd installed, in the same version, for Ray's Python on every node?"
        " Ray's log of its node says more",
    }
    if reference is None:
        return failed
    if reference not in ready:
        return {
            "seat": name,
            "state": "waiting",
            "reason": "Ray has not placed it: no node has the GPUs and CPUs free, or its node does not answer",
        }
    try:
        return dict(ray.get(reference))
    except ray.exceptions.ActorDiedError:
        return failed
    except ray.exceptions.RayError as error:
        return {"seat": name, "state": "moving", "reason": first_line(error)}


def spec_of(seats: list[dict[str, Any]]) -> Spec | None:
    """What the seats were started with; None where none answers."""
    return next((Spec(**one["spec"]) for one in seats if "spec" in one), None)


def stop(wanted: list[str], seconds: float) -> list[str]:
    """End seats; `seconds`: how long their featd may take to seal what it has in hand. Returns those that took longer.
    Where featd still runs, also on a node that does not answer, it stops by itself once its actor has ended."""
    import ray

    late = {one["seat"] for one in states(wanted) if "spec" in one} if seconds else set()
    for name in late:
        ray.get_actor(name).stop.remote()
    deadline = clock.monotonic() + seconds
    while late and clock.monotonic() < deadline:
        clock.sleep(0.2)
        late -= {one["seat"] for one in states(sorted(late)) if one["state"] in ("stopped", "failed")}
    for name in wanted:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name))
    return sorted(late, key=_number)


def _number(name: str) -> int:
    return int(name.removeprefix("ray-"))
