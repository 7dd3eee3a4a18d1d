"""Checking a whole instance: shards against their checksums, rows against shards, counters, files; and repair."""
