"""A worker in the process of the test, with its real threads, decoders and net, stepped by the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from featd.catalog import connect, leases, pairing
from featd.processes.link import ChildLink
from featd.worker.process import Worker, boot
from running import Instance

LEASE_SECONDS = 60.0


@contextmanager
def worker_of(instance: Instance, link: ChildLink) -> Iterator[Worker]:
    """The worker of `instance`, under a lease of its own."""
    catalog = connect.open_catalog(instance.settings.catalog.url, LEASE_SECONDS)
    plan = instance.plan("worker-0")
    plan.run_folder.mkdir(parents=True, exist_ok=True)
    booted = boot(plan, catalog)
    lease = connect.transact(
        catalog,
        leases.open_lease,
        host="here",
        pid=os.getpid(),
        device="cpu:0",
        engine=booted.model.engine.name,
        lease_seconds=LEASE_SECONDS,
    )
    worker = Worker(link, plan, catalog, lease, booted, pairing.check_under_lease(catalog, plan.store.path))
    try:
        yield worker
    finally:
        worker.close("test ended")
        booted.model.engine.close()
        catalog.dispose()
