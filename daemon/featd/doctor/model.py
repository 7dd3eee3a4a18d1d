"""Checks of the model's files: read, and compared with each other and the catalog. No engine loads the net."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featd.catalog import connect, instance, migrate
from featd.config import Settings
from featd.doctor.database import opened
from featd.doctor.engines import find_caffe, find_onnxruntime
from featd.doctor.finding import About, Finding, ok, told
from featd.engines import caffe, onnxruntime
from featd.engines.precision import require_precision
from featd.engines.select import require_engine
from featd.errors import ConfigError, FeatdError, FingerprintError
from featd.processes import devices
from featd.worker.model import differences, fingerprint, read_model


def look_at_model(settings: Settings) -> Iterator[Finding]:
    """The files of the model, and whether they make the vectors that the catalog has."""
    net, preprocess, spec = read_model(
        settings.model, settings.preprocess, settings.store.dtype, l2=settings.store.l2
    )
    engine = settings.model.engine
    if (engine != caffe.NAME and find_onnxruntime()[0]) or (engine != onnxruntime.NAME and find_caffe()[0]):
        require_engine(net, engine)
    try:
        for device in devices.resolve(settings.workers.devices):
            require_precision(settings.model.precision, device)
    except ConfigError as problem:
        yield told(About.MODEL, problem)
    height, width = preprocess.crop
    blobs = ", ".join(f"{blob} ({size:,} numbers)" for blob, size in net.blobs.items())
    yield ok(About.MODEL, f"{settings.model.net}: {blobs}, from pictures of {height} x {width}")
    yield from _fingerprint(settings, spec)


def _fingerprint(settings: Settings, spec: dict[str, Any]) -> Iterator[Finding]:
    """Nothing where the catalog is away, which another check tells."""
    mine = fingerprint(spec)
    with opened(settings) as catalog:
        try:
            migrate.check_schema(catalog)
            with connect.reading(catalog) as conn:
                held, held_spec = instance.fingerprint(conn), instance.spec(conn)
        except FeatdError:
            return
    try:
        instance.check_fingerprint(held, mine, differences(held_spec, spec))
        yield ok(
            About.FINGERPRINT,
            f"{mine[:12]}, {'as in the catalog' if held else 'and the catalog has no vectors yet'}",
        )
    except FingerprintError as problem:
        yield told(About.FINGERPRINT, problem)
