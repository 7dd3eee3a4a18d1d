"""The sample: some images are computed again, with the configuration's own net and preprocessing, and compared with the
script's vectors, before anything is taken over.

This happens in a throw-away process: Caffe aborts its process on a bad model, and the memory of a net is large.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.adopt.chosen import Chosen
from featd.adopt.places import Places
from featd.adopt.script_file import ScriptFile
from featd.catalog import connect
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Identity
from featd.config import places
from featd.decoders.pool import DecoderPool
from featd.engines.precision import tolerance
from featd.errors import FeatdError, FingerprintError, ImageError
from featd.images.decode import decode
from featd.images.read import read_image
from featd.paths import from_catalog
from featd.preprocess.variants import variants
from featd.processes.throwaway import Throwaway
from featd.shards.write import fits
from featd.states import ClaimedImage
from featd.worker import process
from featd.worker.golden import distances
from featd.worker.model import Model, prepared_as

CHECK_SECONDS = 3600.0
"""A sample that takes longer than this is taken to hang."""
SPARE = 100
"""So many more images are drawn than are to be compared, in place of those that cannot be read."""
TOLD = 5
TRIED = 3
"""Images with which usual mistakes are tried, where most differ."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image of the sample, and the script's vector (d,) of it."""

    found: FoundFile
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compared:
    """A file of the sample, and the distance between its two vectors: relative L2."""

    path: str
    distance: float


@dataclass(frozen=True, slots=True)
class Sample:
    """`unreadable`: path -> why featd makes no vector of this file."""

    identity: Identity
    compared: Sequence[Compared]
    unreadable: dict[str, str]
    likely: str
    """The usual mistake of the preprocessing with which the vectors would agree; empty where none is found."""

    @property
    def largest(self) -> float:
        return max(one.distance for one in self.compared)

    def require_agreement(self) -> None:
        """FingerprintError where a vector differs; FeatdError where none could be compared."""
        if not self.compared:
            some = "; ".join(f"{path}: {why}" for path, why in list(self.unreadable.items())[:TOLD])
            raise FeatdError(
                f"nothing was adopted: none of the images drawn could be computed again to compare: {some}"
            )
        worst = sorted(self.compared, key=lambda one: -one.distance)
        most = tolerance(self.identity.spec)
        differing = sum(one.distance > most for one in worst)
        if differing:
            named = ", ".join(f"{one.path} {one.distance:.2g}" for one in worst[: min(TOLD, differing)])
            raise FingerprintError(
                f"nothing was adopted: {differing} of {len(worst)} images of the sample have other vectors with this"
                f" configuration (relative L2 distance above {most:g}). The worst: {named}."
                f" {self._reason(differing)}: see docs/nets.md, `Which configuration for which vectors`"
            )

    def _reason(self, differing: int) -> str:
        if self.likely:
            return f"The script's vectors match {self.likely}"
        if differing > len(self.compared) / 2:
            return (
                "Usually the preprocessing or the blob is another than the script's: size, crop, mean, order of the"
                " channels, scale, which layer"
            )
        return "Usually these files are decoded differently, or their names are those of other images"


def draw_and_compare(
    chosen: Chosen, files: Sequence[ScriptFile], places: Places, wanted: int, seed: int | None
) -> Sample:
    """Compute `wanted` images again, drawn by chance from those that have a place. The caller has no connection to the
    catalog open. ConfigError and others, as a worker raises them at its start; FeatdError where it hangs."""
    drawn = []
    for place in places.drawn(wanted + SPARE, seed):
        vector = files[place.file].vectors(place.row, place.row + 1)
        if fits(vector, chosen.plan.store.dtype).all():
            drawn.append(Drawn(place.found, vector[0]))
    check = Throwaway(lambda: json.dumps(_computed(chosen, drawn, wanted)))
    answer = check.wait(CHECK_SECONDS, "computing the sample")
    answer.raise_error()
    said = json.loads(answer.text)
    return Sample(
        Identity(**said["identity"]),
        [Compared(**one) for one in said["compared"]],
        said["unreadable"],
        said["likely"],
    )


def _computed(chosen: Chosen, drawn: Sequence[Drawn], wanted: int) -> dict[str, Any]:
    """In the throw-away process: what a Sample is made of."""
    plan = chosen.plan
    catalog = connect.open_catalog(plan.catalog_url, plan.lease_seconds)
    booted = process.boot(plan, catalog)
    catalog.dispose()
    images = [
        ClaimedImage(at, chosen.root, one.found.path, one.found.size, one.found.mtime_ns, 1)
        for at, one in enumerate(drawn)
    ]
    follow = {one.key: one.follow_symlinks for one in plan.roots}
    compared: list[Compared] = []
    unreadable: dict[str, str] = {}
    batch = booted.golden.batch
    with (
        tempfile.TemporaryDirectory(prefix="featd-adopt-") as folder,
        DecoderPool(
            booted.model.preprocess,
            follow,
            decoders=plan.decoders,
            trays=1,
            batch=batch,
            hands_path=Path(folder) / "sample.hands",
            places=places(plan.roots),
        ) as pool,
    ):
        at = 0
        while at < len(images) and len(compared) < wanted:
            some = images[at : at + min(batch, wanted - len(compared))]
            at += len(some)
            good, bad = pool.fill(some)
            unreadable |= {some[slot].path: why for slot, why in bad.items()}
            if not good:
                continue
            mine = booted.model.engine.forward(pool.trays[0][good])[chosen.blob]
            held = np.stack([drawn[some[slot].id].vector for slot in good])
            for slot, distance in zip(good, distances(mine, held).tolist(), strict=True):
                compared.append(Compared(some[slot].path, distance))
    apart = {one.path for one in compared if one.distance > booted.model.tolerance}
    likely = ""
    if len(apart) > len(compared) / 2:
        likely = _likely(booted.model, chosen, [one for one in drawn if one.found.path in apart][:TRIED])
    booted.model.engine.close()
    return {
        "likely": likely,
        "identity": asdict(booted.identity),
        "compared": [asdict(one) for one in compared],
        "unreadable": unreadable,
    }


def _likely(model: Model, chosen: Chosen, drawn: Sequence[Drawn]) -> str:
    """Try usual mistakes, the likeliest first, until one explains the script's vectors of these images."""
    follow = {one.key: one.follow_symlinks for one in chosen.plan.roots}[chosen.root]
    root_fd = os.open(places(chosen.plan.roots)[chosen.root], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files = [
            read_image(
                root_fd,
                from_catalog(one.found.path),
                one.found.size,
                one.found.mtime_ns,
                follow_symlinks=follow,
            )
            for one in drawn
        ]
    except ImageError:
        return ""  # a file was changed since it was compared
    finally:
        os.close(root_fd)
    held = np.stack([one.vector for one in drawn])
    prepared = model.prepared()
    for mistake, spec in variants(model.preprocess):
        pixels = [
            decode(  # decoders have decoded these files before
                file.data,
                max_pixels=spec.max_pixels,
                gray=spec.decode_gray,
                alpha=spec.has_alpha,
                orientation=spec.orientation,
                shortest=spec.shortest,
            )
            for file in files
        ]
        tried = prepared_as(prepared, spec)
        made = tried.engine.forward(tried.inputs(pixels))[chosen.blob]
        if distances(made, held).max() <= model.tolerance:
            return mistake
    return ""
