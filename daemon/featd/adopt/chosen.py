"""What the configuration says, and whether a script's files can be of it: one blob, and vectors as wide as it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from featd.adopt.script_file import ScriptFile
from featd.config import RootConfig
from featd.errors import ConfigError
from featd.net.load import load_net
from featd.preprocess.resolve import input_size, resolve
from featd.preprocess.spec import PreprocessSpec
from featd.worker.plan import WorkerPlan


@dataclass(frozen=True, slots=True)
class Chosen:
    """What all steps need: the plan of a worker, the root, the one blob and its size, the preprocessing."""

    plan: WorkerPlan
    root: str
    blob: str
    width: int
    preprocess: PreprocessSpec


def choose(plan: WorkerPlan, root: RootConfig, files: Sequence[ScriptFile]) -> Chosen:
    """ConfigError or ModelError where the net cannot be read, or the files cannot have its vectors. Runs no engine."""
    net = load_net(plan.model.net, plan.model.weights, plan.model.blobs, partial(input_size, plan.preprocess))
    if len(net.blobs) != 1:
        raise ConfigError(
            f"model.blobs: {', '.join(net.blobs)}: a script's file has the vectors of one blob. Make an instance that"
            " has this blob alone"
        )
    ((blob, width),) = net.blobs.items()
    for file in files:
        if file.width != width:
            raise ConfigError(
                f"{file.path}: its vectors have {file.width:,} numbers, and blob {blob} has {width:,}: name the blob"
                " that the script took in model.blobs, or leave this file out. Nothing was adopted"
            )
    return Chosen(plan, root.key, blob, width, resolve(plan.preprocess, net.input_shape, net.preprocess))
