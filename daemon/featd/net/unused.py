"""Settings in a definition that decide nothing of what a net computes, whichever branch of Caffe knows them."""

from __future__ import annotations

from typing import Final

LAYERS: Final = ("LayerParameter", "V1LayerParameter")
_NAMES: Final = frozenset(
    {"blobs_lr", "decay_mult", "engine", "force_backward", "frozen", "lr_mult", "momentum", "weight_decay"}
)
"""Settings of training in any block, of any branch of Caffe, and the choice of an implementation."""
_WORDS: Final = frozenset(
    {"algo", "algos", "backward", "cudnn", "decay", "filler", "grad", "lr", "mkldnn", "momentum"}
)
"""A setting with one of these words in its name is about training, or about how the same is computed faster."""
_OF_NETS: Final = frozenset(
    {"bn_stats_batch_size", "compile_net_state", "eltwise_mem_sharing", "multinode", "reduce_buckets"}
)
PRECISIONS: Final = frozenset(
    {"default_forward_math", "default_forward_type", "forward_math", "forward_type"}
)
SOLVERS: Final = frozenset(
    {
        "base_lr", "display", "lr_policy", "max_iter", "net", "net_param", "snapshot", "snapshot_prefix",
        "solver_mode", "solver_type", "test_interval", "test_iter", "test_net", "train_net", "train_net_param",
    }
)  # fmt: skip
"""Settings of a solver, of a file that people take for the net's."""
_TRAINING: Final = ("FillerParameter", "ParamSpec")
"""Messages that are only about training in what this schema does not know of them."""


def is_unused(name: str, type_name: str) -> bool:
    """Whether a setting that the schema does not know may be left out: it does not change what a net computes, but for
    the precision."""
    return (
        type_name in _TRAINING
        or name in _NAMES
        or (name in _OF_NETS and type_name == "NetParameter")
        or (name in PRECISIONS and type_name in ("NetParameter", *LAYERS))
        or (not name.endswith("_param") and not _WORDS.isdisjoint(name.split("_")))
    )
