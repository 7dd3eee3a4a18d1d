"""Forks the children, watches, restarts and stops them. Knows no database, engine, HDF5 or watchdog."""
