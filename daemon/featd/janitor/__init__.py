"""Cleaning up: leases of dead workers, files that no row names, times that are wrong."""
