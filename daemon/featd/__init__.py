"""featd: folders of images into CNN feature vectors, for as long as images keep arriving.

with featd.open("featd.toml") as features: ...      # reads the vectors: see featd.reader.features.Features
with featd.searcher("featd.toml") as searcher: ...  # finds near ones: see featd.search.searcher.Searcher
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featd.reader.features import Features
    from featd.search.searcher import Searcher

    __version__: str
else:

    def __getattr__(name):
        """`featd.__version__`, read when it is asked for: every process of featd loads this package."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("featd.version").version()


def open(config: str | os.PathLike[str] | None = None) -> Features:
    """The live vectors of the instance of a configuration; None: the one that the command `featd` would find.

    Rights to read the configuration, the catalog and the store suffice. FeatdError.
    """
    # By name: every process of featd loads this package, and few of them read vectors.
    made: Features = importlib.import_module("featd.reader.features").open_features(config)
    return made


def searcher(config: str | os.PathLike[str] | None = None, blob: str | None = None) -> Searcher:
    """Finds the nearest live vectors of a blob (the first). The instance is chosen as by `open`. FeatdError."""
    made: Searcher = importlib.import_module("featd.search.searcher").open_searcher(config, blob)
    return made
