"""The catalog: one row per image, leases, shards, attempts. All SQL of featd stands in this package.

Functions take a Connection inside a transaction that `connect.transact` opened, do one thing, and say under
which lease they may be called. Locks are taken in this order: lease, images by id, shards, counters.
"""
