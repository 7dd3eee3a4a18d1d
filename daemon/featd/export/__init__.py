"""Exporting live vectors into files that other tools read."""
