"""featd: folders of images into CNN feature vectors, for as long as images keep arriving.

with featd.open("featd.toml") as features: ...      # reads the vectors: see featd.reader.features.Features
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featd.reader.features import Features

__version__ = "0.1.0"


def open(config: str | os.PathLike[str] | None = None) -> Features:
    """The live vectors of the instance of a configuration; None: the one that the command `featd` would find.

    Rights to read the configuration, the catalog and the store suffice. FeatdError.
    """
    # By name: every process of featd loads this package, and few of them read vectors.
    made: Features = importlib.import_module("featd.reader.features").open_features(config)
    return made
