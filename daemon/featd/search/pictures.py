"""The vectors of picture files that are not in the catalog: through the very decoders, preprocessing and net that
featd's workers use, on the CPU, in a process of their own, which a bad net or library may end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featd.catalog import instance
from featd.config import Settings
from featd.decoders.pool import DecoderPool
from featd.errors import EngineError, reason
from featd.paths import mtime_of, to_catalog
from featd.processes import devices
from featd.processes.throwaway import Throwaway
from featd.states import ClaimedImage
from featd.worker.model import Model, load_model

BATCH = 16
MOST_SECONDS = 3600.0


def vectors_of(
    settings: Settings, fingerprint: str, blob: str, files: Sequence[Path]
) -> tuple[dict[Path, npt.NDArray[np.float32]], dict[Path, str]]:
    """The vectors (d,) of picture files, as featd would make them; and for each of the others, why it has none.
    ConfigError where the configuration makes other vectors than `fingerprint`; FeatdError."""
    with tempfile.TemporaryFile() as made:

        def make() -> str:
            model = load_model(
                settings.model,
                settings.preprocess,
                settings.store.dtype,
                devices.isolate("cpu"),
                devices.cpu_threads(["cpu"]),
                l2=settings.store.l2,
                pixels=True,
            )
            instance.check_fingerprint(fingerprint, model.fingerprint)
            vectors, problems = _run(model, blob, files)
            np.save(made, vectors)
            made.flush()
            return json.dumps(problems)

        answer = Throwaway(make).wait(MOST_SECONDS, "loading and running the net")
        answer.raise_error()
        problems = json.loads(answer.text)
        made.seek(0)
        vectors = np.load(made)
    good = [file for at, file in enumerate(files) if str(at) not in problems]
    return dict(zip(good, vectors, strict=True)), {files[int(at)]: why for at, why in problems.items()}


def _run(model: Model, blob: str, files: Sequence[Path]) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """The vectors (n, d) of those files that have one; and for the place of each other one, why not."""
    parts = [np.empty((0, model.engine.blobs[blob]), np.float32)]
    problems: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        hands = Path(folder) / "hands"
        pool = DecoderPool(model.preprocess, {"/": True}, decoders=1, trays=1, batch=BATCH, hands_path=hands)
        with pool:
            for at in range(0, len(files), BATCH):
                images = []
                for number, file in enumerate(files[at : at + BATCH], at):
                    try:
                        images.append(_as_claimed(number, file))
                    except OSError as error:
                        problems[number] = reason(error)
                good, bad = pool.fill(images)
                problems |= {images[slot].id: why for slot, why in bad.items()}
                if good:
                    found = model.engine.forward(pool.trays[0][good])[blob]
                    if not np.isfinite(found).all():
                        raise EngineError("the net gives values that are not finite for this picture")
                    parts.append(found.reshape(len(good), -1).astype(np.float32))
    return np.concatenate(parts), problems


def _as_claimed(number: int, file: Path) -> ClaimedImage:
    """A file as the decoders are told of an image. OSError."""
    path = file.resolve()
    found = path.stat()
    name = to_catalog(os.fsencode(path.relative_to("/")))
    return ClaimedImage(number, "/", name, found.st_size, mtime_of(found), 1)
