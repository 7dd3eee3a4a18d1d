"""What must be right before work starts: configuration, catalog, schema, store, net, fingerprint, device."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

from featd import clock
from featd.errors import ConfigError
from featd.processes.oom import says_out_of_memory
from featd.processes.throwaway import Answer, Throwaway
from featd.roots import check_apart
from featd.supervisor.systemd import Notifier
from featd.worker.plan import WorkerPlan

CHECK_SECONDS = 900.0
"""A net that takes longer than this to load and to run once is taken to hang."""


def check_beforehand(plan: WorkerPlan, notifier: Notifier, close: Sequence[int] = ()) -> None:
    """Check everything that must be right before work starts, in a throw-away process.

    Caffe aborts its process on a bad model, and CUDA does not survive a fork: neither may happen in the supervisor.
    `close`: the caller's descriptors that the process must not hold.
    """
    if not plan.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    answer = _tried(plan, notifier, close)
    if answer.code == -signal.SIGKILL or (
        answer.code and says_out_of_memory(answer.text + answer.last_words)
    ):
        # Perhaps memory is short for a batch only: then a worker finds out how large its batches may be.
        answer = _tried(replace(plan, batch=1), notifier, close)
    answer.raise_error()


def _tried(plan: WorkerPlan, notifier: Notifier, close: Sequence[int]) -> Answer:
    """How the check ends. FeatdError where it hangs."""

    def try_everything() -> str:
        from featd.catalog import connect, migrate, pairing
        from featd.worker import process as worker_process

        check_apart([root.path for root in plan.roots])
        catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        migrate.check_schema(catalog)
        connect.transact(catalog, lambda _: None)  # fails where the catalog cannot be written
        worker_process.boot(plan, catalog)
        pairing.pair(catalog, plan.store.path, plan.host, plan.lease_seconds)
        return ""

    notifier.status("starting: loading the net", clock.monotonic())
    return Throwaway(try_everything, close).wait(CHECK_SECONDS, "loading the net", notifier.still_starting)
