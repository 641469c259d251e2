"""The testing kit: random graphs, comparisons, and a check for rewrites. It needs Hypothesis and is public.

`check_rewrite` tests a user's rewrite; `@grows` registers how a random graph grows by a user's operator.
"""

from . import grow_elementwise, grow_layers, grow_movement, module_statements
from .compare import assert_equivalent, assert_exact
from .cuts import check_closed, check_cut, check_permutation, opened, permuted, random_removal
from .drawn import drawn_constant, drawn_samples
from .graphs import (
    CNN_OPS,
    DEFAULT_OPS,
    INTEGER_OPS,
    MLP_OPS,
    Example,
    examples,
    graphs,
    graphs_around,
    quantized_graphs,
)
from .growth import GROWS, Grow, Growth, Step, grows
from .integers import to_integers
from .modules import (
    STATEMENTS,
    Draft,
    ModulePlan,
    ModuleSource,
    RandomModule,
    module_source,
    modules,
    random_module,
    statement,
)
from .rewrites import RewriteError, check_rewrite
from .tensors import inputs, tensors

__all__ = [
    "CNN_OPS",
    "DEFAULT_OPS",
    "GROWS",
    "INTEGER_OPS",
    "MLP_OPS",
    "STATEMENTS",
    "Draft",
    "Example",
    "Grow",
    "Growth",
    "ModulePlan",
    "ModuleSource",
    "RandomModule",
    "RewriteError",
    "Step",
    "assert_equivalent",
    "assert_exact",
    "check_closed",
    "check_cut",
    "check_permutation",
    "check_rewrite",
    "drawn_constant",
    "drawn_samples",
    "examples",
    "graphs",
    "graphs_around",
    "grow_elementwise",
    "grow_layers",
    "grow_movement",
    "grows",
    "inputs",
    "module_source",
    "module_statements",
    "modules",
    "opened",
    "permuted",
    "quantized_graphs",
    "random_module",
    "random_removal",
    "statement",
    "tensors",
    "to_integers",
]
