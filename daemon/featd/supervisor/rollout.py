"""A new configuration on its way to the children: who starts anew for it, and in what order.

Workers come one after the other: while one loads its net the others go on, and where it does not come back they
keep the configuration that they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from featd.processes.child import Child, ChildSpec


@dataclass(frozen=True, slots=True)
class Change:
    """What a new configuration asks for: `specs` replace those of their names, whose children start anew, or are
    new; the children of `without` end."""

    specs: Sequence[ChildSpec]
    stop_seconds: float
    message: str
    without: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a new configuration is not applied."""

    reason: str


class Reload(Protocol):
    """Reads a new configuration, without making the supervisor wait."""

    def begin(self) -> None: ...

    def step(self) -> Change | Refusal | None: ...

    def close(self) -> None: ...


class Rollout:
    """Of one configuration after the other; `children` are the supervisor's, by name."""

    def __init__(self, children: dict[str, Child]) -> None:
        self._children = children
        self._concerned: set[str] = set()
        self._were_at_work: set[str] = set()

    def begin(self, change: Change, now: float) -> None:
        """Give the children their new specs. What an earlier change has not come to yet goes on with it."""
        names = {spec.name for spec in change.specs}
        self._were_at_work |= {
            name for name in names if name in self._children and self._children[name].ready
        }
        self._were_at_work &= names
        self._concerned |= names
        for spec in change.specs:
            if spec.name not in self._children:
                self._children[spec.name] = Child(spec)
            _replace(self._children[spec.name], spec, now)
        for name in change.without:
            self._concerned.discard(name)
            _replace(self._children[name], replace(self._children[name].spec, once=True), now)

    def to_end(self) -> Iterator[Child]:
        """Those whose process is to end now, or goes on to. Asked every turn, child by child as they are told."""
        for child in self._children.values():
            if child.restarting and self._is_its_turn(child):
                yield child

    def is_over(self) -> bool:
        """All that are concerned are at work again, or must be waited for no longer."""
        if self.stalled() or all(_is_settled(self._children[name]) for name in self._concerned):
            self._concerned.clear()
            return True
        return False

    def stalled(self) -> str:
        """Why workers keep the configuration of before; empty where none does."""
        failing = next((name for name in sorted(self._were_at_work) if _fails(self._children[name])), None)
        if failing is None or not any(child.restarting for child in self._children.values()):
            return ""
        return f"{failing} does not start with the new configuration: the other workers keep the old one"

    def _is_its_turn(self, child: Child) -> bool:
        if child.spec.once or not child.spec.essential or child.asked_at is not None:
            return True
        others = (other for other in self._children.values() if other is not child and other.spec.essential)
        return not any(self._is_away(other) for other in others)

    def _is_away(self, worker: Child) -> bool:
        """It ends for the new configuration, or has not come back yet. One that was not at work before is not
        waited for once it has failed."""
        if worker.asked_at is not None:
            return True
        if worker.spec.name in self._were_at_work:
            return not worker.ready
        return not (worker.ready or worker.over or worker.deaths)


def _replace(child: Child, spec: ChildSpec, now: float) -> None:
    child.spec = spec
    child.finished, child.given_up = False, None
    child.deaths = child.boot_failures = 0
    child.start_at = now
    child.restarting = child.pid is not None


def _is_settled(child: Child) -> bool:
    return not child.restarting and (child.ready or child.over or child.deaths > 0)


def _fails(child: Child) -> bool:
    return not child.ready and (child.boot_failures > 0 or child.given_up is not None)
