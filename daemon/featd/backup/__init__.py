"""Backing up a catalog and its shards into a folder, and restoring them from it."""
