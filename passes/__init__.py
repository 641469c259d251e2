"""The passes: graph in, graph and report out. Import of this package registers all built-in passes.

fused = fuse(graph).graph
quantized = quantize(fused, activations="int16", context=Context(calibration=batches)).graph
"""

from .assign_bits import assign_bits
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
from .clean import clean
from .equalize import equalize
from .errors import CalibrationError, InfeasibleError, MissingNeedError, PassError, UnknownPassError
from .finetune import finetune
from .fuse import fuse
from .pattern import OPTIONAL, Application, Match, Rule, Term, apply_rule, op
from .product_quantize import product_quantize
from .prune import prune
from .quantize import quantize
from .remove_dead_channels import remove_dead_channels
from .report import Decision, PassReport, Table
from .rotate import rotate
from .smooth import smooth
from .sparsify import sparsify
from .stream import stream
from .weight_only import weight_only

__all__ = [
    "OPTIONAL",
    "PASSES",
    "Application",
    "ArenaBlock",
    "CalibrationError",
    "Context",
    "Cost",
    "CostModel",
    "Decision",
    "InfeasibleError",
    "Match",
    "MissingNeedError",
    "NodeCost",
    "Pass",
    "PassError",
    "PassReport",
    "PassResult",
    "Rule",
    "Table",
    "Term",
    "UnknownPassError",
    "apply_rule",
    "assign_bits",
    "clean",
    "equalize",
    "find_pass",
    "finetune",
    "fuse",
    "op",
    "product_quantize",
    "prune",
    "quantize",
    "register",
    "remove_dead_channels",
    "rotate",
    "smooth",
    "sparsify",
    "stream",
    "weight_only",
]
