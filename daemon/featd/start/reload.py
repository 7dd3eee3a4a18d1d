"""SIGHUP: a new configuration is read and checked in a throw-away process, then applied or refused as a whole.

Applying it restarts the children that it concerns, after they have finished what they have in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featd import clock, logs
from featd.config import LogConfig
from featd.errors import ConfigError, FeatdError
from featd.processes.child import ChildSpec
from featd.processes.throwaway import Throwaway
from featd.roots import check_apart
from featd.supervisor.rollout import Change, Refusal
from featd.worker.plan import WorkerPlan

FIXED = (
    "catalog.url",
    "store.path",
    "host.state",
    "store.dtype",
    "store.l2",
    "model.engine",
    "model.net",
    "model.weights",
    "model.blobs",
    "preprocess",
    "workers.devices",
    "workers.per_device",
    "workers.set_aside_after",
)
"""Keys that a running featd keeps: they decide what the vectors are, where they go, or which processes there are."""
MOVES = {
    "catalog.url": "stop featd, move the catalog there, then start featd; for another catalog, make another instance",
    "store.path": "stop featd, move the store there, then start featd",
}
"""What must be done before a restart with another value of these keys."""
OF_VECTORS = ("store.dtype", "store.l2", "model", "preprocess")
"""Keys, and sections, with which a restart may be refused, as they may give other vectors than the catalog has."""

CHECK_SECONDS = 120.0
"""A configuration that is not read and checked in this time is refused: a mount or a database may hang."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a configuration asks for: its values by dotted key, and the children with their plans."""

    keys: Mapping[str, Any]
    specs: Sequence[ChildSpec]
    stop_seconds: float
    log: LogConfig
    worker: WorkerPlan
    """The first worker's plan, which differs from the others' in its device alone; also where the seat has none."""


def difference(old: Configuration, new: Configuration) -> Change:
    """The keys that differ, and the children to start anew: those whose plan has changed, or all of them where [log]
    has, which they inherit."""
    before = {spec.name: spec for spec in old.specs}
    same = {} if new.log != old.log else before
    return Change(
        specs=[spec for spec in new.specs if spec != same.get(spec.name)],
        stop_seconds=new.stop_seconds,
        keys=[key for key, value in new.keys.items() if value != old.keys[key]],
        without=sorted(before.keys() - {spec.name for spec in new.specs}),
    )


def refused_keys(changed: Sequence[str]) -> list[str]:
    """The keys that only a restart applies."""
    return [key for key in changed if _is_of(key, FIXED)]


def _is_of(key: str, keys: Sequence[str]) -> bool:
    """Whether `key` is one of `keys`, or in one of these sections."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def way_out(refused: Sequence[str], restart: Callable[[], None]) -> str:
    """What to do to have the new values of these keys, key by key. `restart` tries whether featd would start with the
    new model: FeatdError."""
    advice = [f"{key}: {MOVES[key]}" for key in refused if key in MOVES]
    of_vectors = [key for key in refused if _is_of(key, OF_VECTORS)]
    fine = [key for key in refused if key not in MOVES and key not in of_vectors]
    if of_vectors:
        try:
            restart()
            fine += of_vectors
        except FeatdError as error:
            advice.append(f"{', '.join(of_vectors)}: a restart would be refused: {error}")
    if fine:
        advice.append(f"{', '.join(fine)}: restart featd to change it")
    return "; ".join(advice)


class ConfigReload:
    """The supervisor's `Reload`: `begin` starts the check; `step` returns its result once it has ended."""

    def __init__(
        self, file: Path, read: Callable[[], Configuration], now: Configuration, close: Sequence[int] = ()
    ) -> None:
        self._file = file
        self._read = read
        self._now = now
        self._close = close
        self._check: Throwaway | None = None
        self._again = False
        self._deadline = 0.0

    def begin(self) -> None:
        if self._check is None:
            self._deadline = clock.monotonic() + CHECK_SECONDS
            self._check = Throwaway(self._read_and_check, self._close)
        else:
            self._again = True  # the file may have changed since this check read it

    def step(self) -> Change | Refusal | None:
        answer = self._check.poll() if self._check is not None else None
        if answer is None:
            if self._check is None or clock.monotonic() < self._deadline:
                return None
            self.close()
            return Refusal(f"{self._file} could not be checked within {CHECK_SECONDS:g} s")
        self.close()
        if self._again:
            self._again = False
            self.begin()
            return None
        try:
            answer.raise_error()
            new = self._read()
        except FeatdError as error:
            return Refusal(str(error))
        if repr(new.keys) != answer.text:
            return Refusal(f"{self._file} changed while it was read: reload again")
        before, self._now = self._now, new
        logs.configure(new.log.level, new.log.format)
        logs.setup()
        return difference(before, new)

    def close(self) -> None:
        if self._check is not None:
            self._check.end()
            self._check = None

    def _read_and_check(self) -> str:
        """In the throw-away process: the new values as text. ConfigError says what is wrong with them."""
        from featd.catalog import connect, migrate, pairing, root_names

        new = self._read()
        if refused := refused_keys(difference(self._now, new).keys):
            raise ConfigError(way_out(refused, lambda: self._try_model(new.worker)))
        plan = new.worker
        if not plan.roots:
            raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
        for root in plan.roots:
            if root not in self._now.worker.roots and not root.path.is_dir():
                raise ConfigError(f"roots: {root.path}: no such folder")
        check_apart([root.path for root in plan.roots])
        catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        migrate.check_schema(catalog)
        root_names.check(catalog, plan.roots)
        pairing.check(catalog, plan.store.path)
        return repr(new.keys)

    def _try_model(self, plan: WorkerPlan) -> None:
        """FeatdError where featd would not start with this model on the present catalog. Loads it on the CPU: the
        devices are in use."""
        from featd.catalog import connect, instance
        from featd.worker.model import differences, load_model

        model = load_model(plan.model, plan.preprocess, plan.store.dtype, "cpu", 1, l2=plan.store.l2)
        now = self._now.worker
        with connect.reading(connect.open_catalog(now.catalog_url, now.lease_seconds)) as conn:
            held, held_spec = instance.fingerprint(conn), instance.spec(conn)
        instance.check_fingerprint(held, model.fingerprint, differences(held_spec, model.spec))
