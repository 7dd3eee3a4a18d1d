"""All checks of one machine and one configuration. Start reading here.

The checks are forked from this process, so it loads no engine, NumPy or HDF5, which have threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from featd.config import Settings, load, password_is_readable, token_is_readable
from featd.config_file import find
from featd.doctor import database, gpus, machine, places
from featd.doctor.bounded import SECONDS, Check, run_all
from featd.doctor.finding import About, Finding, error, ok, told, warning
from featd.errors import ConfigError

SLOW_DISK = "a disk or network mount does not answer: look at `mount` and `dmesg`"
SLOW_LIBRARY = "a library hangs while it is loaded: look at `dmesg`"
SLOW_DRIVER = "the NVIDIA driver does not answer: look at `nvidia-smi` and `dmesg`"
SLOW_DATABASE = "the database or the disk of the store does not answer: look at its server and at `mount`"
LIBRARY_SECONDS = 90.0
"""Caffe and ONNX Runtime load within two seconds, but not on a machine whose cores are all busy."""
MODEL_SECONDS = 120.0
"""Weights of a gigabyte take seconds to read; from a slow disk, more."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration as far as it could be read: `settings` is None where it could not."""

    file: Path | None
    settings: Settings | None
    findings: tuple[Finding, ...]


def read_configuration(explicit: Path | None) -> Configuration:
    """The configuration that commands would read. Wrong keys are findings, and the others count."""
    file = None
    faults: list[str] = []
    try:
        file = find(explicit)
        settings = load(file, faults)
    except ConfigError as problem:
        way_out = "correct the file; `featd init` writes one in which every key is explained"
        finding = told(About.CONFIGURATION, problem, "" if file is None else way_out)
        rest = f"{finding.text}; roots, store, catalog and model are not checked"
        return Configuration(file, None, (replace(finding, text=rest),))
    found = [
        error(About.CONFIGURATION, fault, "correct it; `featd run` refuses the file until then")
        for fault in faults
    ]
    return Configuration(
        file, settings, tuple(found or [ok(About.CONFIGURATION, f"{file.absolute()} is sound")])
    )


def examine(explicit: Path | None, service: Sequence[Check] = ()) -> Iterator[Finding]:
    """Look at everything; findings come as they are made, in the order of the report. `service`: how the commands see
    this machine's services. Takes about as long as the slowest check."""
    configuration = read_configuration(explicit)
    yield from configuration.findings
    settings = configuration.settings
    if settings is not None and configuration.file is not None:
        yield from _secrets(settings, configuration.file)
    yield from run_all(
        [*_of_the_machine(settings), *(_of_the_instance(settings) if settings else ()), *service]
    )


def _secrets(settings: Settings, file: Path) -> Iterator[Finding]:
    """What a configuration file holds that not everybody may read."""
    everybody = "everybody on this machine can read"
    if password_is_readable(settings, file):
        yield warning(
            About.PASSWORD,
            f"{everybody} the database's password in {file}",
            f"`chmod o-r {file}`; better, keep it in ~/.pgpass or in /etc/featd/featd.password",
        )
    if token_is_readable(settings, file):
        yield warning(
            About.PASSWORD,
            f"{everybody} the page's token in {file}",
            f"`chmod o-r {file}`; or set it in the environment: FEATD_WEB__TOKEN",
        )


def _of_the_machine(settings: Settings | None) -> list[Check]:
    """What can be said without a configuration, too."""

    def engines() -> Iterable[Finding]:
        from featd.doctor.engines import look_at_engines

        return look_at_engines(settings)

    roots, model = (settings.roots, settings.model) if settings else ((), None)
    return [
        Check(About.ENGINES, engines, SLOW_LIBRARY, LIBRARY_SECONDS),
        Check(About.DEVICES, partial(gpus.look_at_devices, settings), SLOW_DRIVER, LIBRARY_SECONDS),
        Check(About.INOTIFY, partial(machine.look_at_inotify, roots), SLOW_DISK, 2 * SECONDS),
        Check(About.FILES, machine.look_at_open_files, SLOW_DISK),
        Check(About.TEMPORARY, partial(machine.look_at_temporary_files, model), SLOW_DISK),
    ]


def _of_the_instance(settings: Settings) -> list[Check]:
    """What needs a configuration."""

    def model() -> Iterable[Finding]:
        from featd.doctor.model import look_at_model

        return look_at_model(settings)

    store = settings.store
    return [
        Check(About.MODEL, model, SLOW_DISK, MODEL_SECONDS),
        *(
            Check(About.ROOT, partial(places.look_at_root, root), f"{root.path}: {SLOW_DISK}")
            for root in settings.roots
        ),
        Check(About.ROOTS, partial(places.look_at_roots, settings.roots), SLOW_DISK, 2 * SECONDS),
        Check(About.STORE, partial(places.look_at_store, store), f"{store.path}: {SLOW_DISK}"),
        Check(About.CATALOG, partial(database.look_at_catalog, settings), SLOW_DATABASE, 2 * SECONDS),
        Check(About.PAIRING, partial(database.look_at_pairing, settings), SLOW_DATABASE, 2 * SECONDS),
    ]
