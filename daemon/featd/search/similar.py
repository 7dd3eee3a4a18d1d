"""The neighbours of one image for the page, which loads no vectors itself: `python -m featd.search.similar`.

Standard input has a document with `catalog_url`, `store`, `image_id` and `count`; standard output gets one with
`neighbours`, pairs of an image's id and its distance, or with `error`, a sentence. No index is made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from featd import logs
from featd.catalog import connect, live
from featd.errors import FeatdError
from featd.processes.signals import die_with_parent
from featd.search.searcher import Searcher

NO_INDEX = (
    "there is no index yet: `featd index` makes it, and with [search] enabled featd keeps it up to date"
)
NO_VECTOR = "this image has no vector"


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The document to print."""
    catalog = connect.open_catalog(asked["catalog_url"])
    with contextlib.closing(Searcher(catalog, Path(asked["store"]))) as searcher:
        with connect.reading(catalog) as conn:
            found = live.live_of(conn, [asked["image_id"]])
        vector = searcher.vector_of(found[0]) if found else None
        if vector is None:
            return {"error": NO_VECTOR}
        if not searcher.open():
            return {"error": NO_INDEX}
        near = searcher.nearest(vector[None], asked["count"], [asked["image_id"]])[0]
    return {"neighbours": [(one.image.image_id, one.distance) for one in near]}


def main() -> None:
    """Main function."""
    parser = argparse.ArgumentParser(prog="featd.search.similar", allow_abbrev=False)
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    logs.setup("ERROR")
    try:
        document = answer(json.load(sys.stdin))
    except FeatdError as error:
        document = {"error": str(error)}
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
