"""Why featd cannot start where it cannot even lock its store: catalog, schema, and the store itself."""

from __future__ import annotations

from featd.processes.throwaway import Throwaway
from featd.worker.plan import WorkerPlan

CHECK_SECONDS = 120.0


def check_without_net(plan: WorkerPlan) -> None:
    """FeatdError that says what is wrong with the catalog or the store. Where the store can be locked, the first worker
    checks everything, with the net."""

    def look() -> str:
        from featd.catalog import connect, migrate, pairing

        catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
        migrate.check_schema(catalog)
        pairing.check(catalog, plan.store.path)
        return ""

    Throwaway(look).wait(CHECK_SECONDS, "looking at the catalog and the store").raise_error()
