"""Processes that read and decode pictures for a worker, and the pool that feeds them."""
