"""Why a picture's bytes cannot be read, as the modules of the formats say it. ImageErrors are made of it above."""

from __future__ import annotations


class EndsEarlyError(Exception):
    """The data ends before the part that was read."""


class OutOfOrderError(Exception):
    """The data contradicts itself."""


class UnsupportedError(Exception):
    """The data is in order, but nothing here reads this kind of it."""
