"""The pass `fuse`: paddings, batch norms, activations and additions go into the layers next to them."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir import Graph, Source
from ..specs.options import FuseOptions, FuseRule
from .base import Context, PassResult, register
from .fold_batchnorm import FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE
from .fold_pad import FOLD_PAD
from .fuse_activation import FUSE_ACTIVATION
from .fuse_residual import FUSE_RESIDUAL
from .merge_linear import MERGE_CONV, MERGE_LINEAR
from .pattern import Rule, apply_rule
from .report import Decision, PassReport

# in an order in which none undoes another's work
RULES: Mapping[FuseRule, tuple[Rule, ...]] = {
    "pad": (FOLD_PAD,),
    "batchnorm": (FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE),
    "linear": (MERGE_LINEAR, MERGE_CONV),
    "residual": (FUSE_RESIDUAL,),
    "activation": (FUSE_ACTIVATION,),
}


@register(FuseOptions)
def fuse(graph: Graph, options: FuseOptions, context: Context) -> PassResult:
    """Fuse what the layers can do themselves; each rule walks the graph once."""

    def is_kept(source: Source) -> bool:
        return context.selects_any(options.keep, source)

    decisions: list[Decision] = []
    for name, rules in RULES.items():
        for rule in rules if name not in options.disable else ():
            graph, decided = apply_rule(graph, rule, is_kept=is_kept)
            decisions += decided
    return PassResult(graph, PassReport("fuse", tuple(decisions)))
