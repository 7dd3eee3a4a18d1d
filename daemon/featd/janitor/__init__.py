"""What must be put right: leases of the dead, files that no row names, times that are wrong."""
