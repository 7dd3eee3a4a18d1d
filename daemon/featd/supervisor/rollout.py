"""A new configuration on its way to the children: the names still to replace, the one under way, and the verdict.

Workers are replaced one after the other: the next one only when the one before is ready again. Where it does not come
back, the others keep their configuration, until a worker has started with a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from featd import logs
from featd.processes.child import Child, ChildSpec

log = logs.get("supervisor")


@dataclass(frozen=True, slots=True)
class Change:
    """What a new configuration asks for: new `specs` for the children of these names, or for new children; the
    children of `without` end. `keys` are the settings that changed."""

    specs: Sequence[ChildSpec]
    stop_seconds: float
    keys: Sequence[str]
    without: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a new configuration is not applied."""

    reason: str


class Reload(Protocol):
    """Reads a new configuration while the supervisor goes on."""

    def begin(self) -> None: ...

    def step(self) -> Change | Refusal | None: ...

    def close(self) -> None: ...


class Rollout:
    """Asks `reload` for new configurations and brings them to `children`, the supervisor's, by name."""

    def __init__(self, children: dict[str, Child], reload: Reload | None, stop_seconds: float) -> None:
        self.stop_seconds = stop_seconds
        self._children = children
        self._reload = reload
        self._reading = False
        self._waiting: dict[str, ChildSpec] = {}
        self._under_way: set[str] = set()
        """Children that must be ready before the next worker is replaced: at most one of them is a worker."""
        self._refusal = ""

    @property
    def reading(self) -> bool:
        """Whether a process reads the configuration."""
        return self._reading

    @property
    def active(self) -> bool:
        """Whether a configuration is read, or children are still being replaced."""
        return self._reading or (bool(self._waiting or self._under_way) and not self._stalled())

    @property
    def verdict(self) -> str:
        """Why children run with an older configuration than the file's; empty where none does."""
        if self._refusal or not (self._waiting and (failing := self._stalled())):
            return self._refusal
        return f"{failing} does not start with the new configuration: the other workers keep the old one"

    def ask(self) -> bool:
        """Read the configuration again; False where there is none to read."""
        if self._reload is None:
            return False
        self._reload.begin()
        self._reading = True
        return True

    def step(self, now: float) -> None:
        """One turn."""
        was_active = self.active
        if self._reading and self._reload is not None:
            match self._reload.step():
                case Refusal(reason):
                    self._reading = False
                    self._refusal = f"new configuration refused: {reason}"
                    log.error(
                        "reload_refused",
                        "new configuration refused; keeping the old one: correct the file, then send SIGHUP again",
                        reason=reason,
                    )
                case Change() as change:
                    self._reading = False
                    self._begin(change, now)
        self._under_way = {name for name in self._under_way if not self._is_settled(name)}
        if not self._under_way and self._waiting:
            name = next(iter(self._waiting))
            self._children[name].replace(self._waiting.pop(name), now)
            self._under_way = {name}
        if was_active and not self.active and not self.verdict:
            log.info("reload_finished", "every child runs with the current configuration")

    def close(self) -> None:
        """Ask no more."""
        if self._reload is not None:
            self._reload.close()
        self._reading = False

    def _begin(self, change: Change, now: float) -> None:
        children = [spec.name for spec in change.specs]
        if change.keys:
            keys, names = ", ".join(change.keys), ", ".join(children)
            log.info("reload_applied", "applying the new configuration", keys=keys, restarting=names)
        else:
            log.info("reload_unchanged", "the configuration has not changed")
        self._refusal = ""
        self.stop_seconds = change.stop_seconds
        for spec in change.specs:
            child = self._children.setdefault(spec.name, Child(spec))
            if spec.essential and child.ready and not child.restarting:
                self._waiting[spec.name] = (
                    spec  # what an earlier change has not reached yet gets the newer one
                )
            else:
                child.replace(spec, now)
                if not spec.essential or spec.name in self._under_way:
                    self._under_way.add(spec.name)
        for child in self._children.values():
            if child.given_up is not None:  # what was wrong may have been put right
                child.replace(child.spec, now)
        for name in change.without:
            self._waiting.pop(name, None)
            self._under_way.discard(name)
            self._children[name].replace(replace(self._children[name].spec, once=True), now)

    def _stalled(self) -> str:
        """The worker that does not come back with its new configuration; empty where there is none."""
        for name in self._under_way:
            child = self._children[name]
            if (
                child.spec.essential
                and not child.ready
                and (child.boot_failures or child.given_up is not None)
            ):
                return name
        return ""

    def _is_settled(self, name: str) -> bool:
        """Whether a child is ready again. Only for a worker does the rollout wait while it fails."""
        child = self._children[name]
        if child.restarting:
            return False
        return child.ready or (not child.spec.essential and (child.over or child.deaths > 0))
