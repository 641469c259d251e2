"""The passes: graph in, graph and report out. Importing this package registers all of ours."""

from . import (
    assign_bits,
    clean,
    equalize,
    finetune,
    fuse,
    prune,
    quantize,
    remove_dead_channels,
    sparsify,
    weight_only,
)
from .base import (
    PASSES,
    ArenaBlock,
    Context,
    Cost,
    CostModel,
    NodeCost,
    Pass,
    PassResult,
    find_pass,
    register,
)
from .errors import CalibrationError, InfeasibleError, MissingNeedError, PassError, UnknownPassError
from .report import Decision, PassReport, Table

__all__ = [
    "PASSES",
    "ArenaBlock",
    "CalibrationError",
    "Context",
    "Cost",
    "CostModel",
    "Decision",
    "InfeasibleError",
    "MissingNeedError",
    "NodeCost",
    "Pass",
    "PassError",
    "PassReport",
    "PassResult",
    "Table",
    "UnknownPassError",
    "assign_bits",
    "clean",
    "equalize",
    "find_pass",
    "finetune",
    "fuse",
    "prune",
    "quantize",
    "register",
    "remove_dead_channels",
    "sparsify",
    "weight_only",
]
