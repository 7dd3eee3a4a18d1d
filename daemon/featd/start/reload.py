"""SIGHUP: a new configuration is read and checked in a throw-away process, then applied or refused as a whole.

Applying it restarts the children that it concerns, after they have finished what they have in hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from featd import clock, config, logs
from featd.config import Settings
from featd.errors import ConfigError, FeatdError
from featd.processes.child import ChildSpec
from featd.processes.throwaway import Throwaway
from featd.supervisor.rollout import Change, Refusal

FIXED = (
    "catalog.url",
    "store.path",
    "store.dtype",
    "model.engine",
    "model.net",
    "model.weights",
    "model.blobs",
    "preprocess",
    "workers.devices",
)
"""Keys that a running featd keeps: they decide what the vectors are, where they go, or which processes there are."""

CHECK_SECONDS = 120.0
"""A configuration that is not read and checked in this time is refused: a mount or a database may hang."""

Specs = Callable[[Settings], list[ChildSpec]]


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """The dotted names of the keys that differ; `roots` is one key."""
    before, after = old.model_dump(), new.model_dump()
    found = []
    for section, values in after.items():
        if not isinstance(values, dict):
            found += [section] if values != before[section] else []
            continue
        found += [f"{section}.{key}" for key, value in values.items() if value != before[section][key]]
    return found


def refused_keys(changed: Sequence[str]) -> list[str]:
    """The keys that only a restart applies."""
    return [key for key in changed if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)]


def concerned(old: Settings, new: Settings, specs: Specs) -> list[ChildSpec]:
    """The children to start anew: those whose plan has changed; all of them where [log] has, which they inherit."""
    before = {} if new.log != old.log else {spec.name: spec for spec in specs(old)}
    return [spec for spec in specs(new) if spec != before.get(spec.name)]


class ConfigReload:
    """The supervisor's `Reload`: `begin` starts the check; `step` returns its result once it has ended."""

    def __init__(self, file: Path, settings: Settings, specs: Specs, close: Sequence[int] = ()) -> None:
        self._file = file
        self._settings = settings
        self._specs = specs
        self._close = close
        self._check: Throwaway | None = None
        self._again = False
        self._deadline = 0.0

    def begin(self) -> None:
        if self._check is None:
            self._deadline = clock.monotonic() + CHECK_SECONDS
            self._check = Throwaway(
                functools.partial(_read_and_check, self._file, self._settings), self._close
            )
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
            settings = config.load(self._file)
        except FeatdError as error:
            return Refusal(str(error))
        if settings.model_dump_json() != answer.text:
            return Refusal(f"{self._file} changed while it was read: reload again")
        before, self._settings = self._settings, settings
        logs.configure(settings.log.level, settings.log.format)
        logs.setup()
        ended = {spec.name for spec in self._specs(before)} - {spec.name for spec in self._specs(settings)}
        return Change(
            specs=concerned(before, settings, self._specs),
            stop_seconds=settings.workers.stop_seconds,
            keys=changed_keys(before, settings),
            without=sorted(ended),
        )

    def close(self) -> None:
        if self._check is not None:
            self._check.end()
            self._check = None


def _read_and_check(file: Path, old: Settings) -> str:
    """In the throw-away process: the new settings as JSON. ConfigError says what is wrong with them."""
    from featd.catalog import connect, instance, migrate
    from featd.shards.store import check_store

    new = config.load(file)
    if refused := refused_keys(changed_keys(old, new)):
        raise ConfigError(f"{', '.join(refused)}: restart featd to change it")
    if not new.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    for root in new.roots:
        if root not in old.roots and not root.path.is_dir():
            raise ConfigError(f"roots: {root.path}: no such folder")
    catalog = connect.open_catalog(new.catalog.url, new.workers.lease_seconds)
    migrate.check_schema(catalog)
    with connect.reading(catalog) as conn:
        check_store(new.store.path, instance.instance_id(conn))
    return new.model_dump_json()
