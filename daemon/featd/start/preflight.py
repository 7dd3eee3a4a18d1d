"""Why featd cannot start where it cannot even lock its store: catalog, schema, and the store itself."""

from __future__ import annotations

from collections.abc import Sequence

from featd.processes.throwaway import Throwaway
from featd.roots import check_apart
from featd.worker.plan import WorkerPlan

CHECK_SECONDS = 120.0
LOOKING = "looking at the catalog and the store"


def check_without_net(plan: WorkerPlan) -> None:
    """FeatdError that says what is wrong with the catalog or the store. Where the store can be locked, the first worker
    checks everything, with the net."""

    def look() -> str:
        from featd.catalog import connect, migrate, pairing

        catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        migrate.check_schema(catalog)
        pairing.check(catalog, plan.store.path)
        return ""

    Throwaway(look).wait(CHECK_SECONDS, LOOKING).raise_error()


def prove_without_net(plan: WorkerPlan, close: Sequence[int]) -> None:
    """What the first worker checks at a start, but for the net: for a seat without workers. `close`: the descriptors of
    its locks. FeatdError."""

    def prove() -> str:
        from featd.catalog import connect, migrate, pairing, root_names

        check_apart([root.path for root in plan.roots])
        catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        migrate.check_schema(catalog)
        root_names.check(catalog, plan.roots)
        pairing.check_seat(catalog, plan.seat, plan.seat_key)
        pairing.pair(catalog, plan.store.path, plan.seat, plan.lease_seconds)
        return ""

    seconds = CHECK_SECONDS + plan.lease_seconds
    Throwaway(prove, close).wait(seconds, LOOKING).raise_error()
