"""The version of featd that runs: that of its installation, which the build took from a tag."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

CHECKOUT = "0+checkout"
"""The version of a checkout: it has none before it is built."""


@functools.cache
def version() -> str:
    """The version of the installed featd; CHECKOUT where this package is not installed, or is used in place."""
    here = Path(__file__).parent
    for found in metadata.distributions(name="featd"):
        # Another featd may be installed beside a checkout that comes first on PYTHONPATH.
        if Path(str(found.locate_file("featd"))).resolve() == here.resolve():
            return found.version
    return CHECKOUT
