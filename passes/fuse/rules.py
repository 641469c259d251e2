"""The pass `fuse`: folds paddings, batch norms, activations and additions into adjacent layers."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Graph, Source
from ...specs.options import FuseOptions, FuseRule
from ...specs.plugins import FUSION_RULES, PluginError
from ..base import Context, PassResult, register
from ..errors import PassError
from ..pattern import Rule, apply_rule
from ..report import Decision, PassReport
from .fold_batchnorm import FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE
from .fold_pad import FOLD_PAD
from .fuse_activation import FUSE_ACTIVATION
from .fuse_residual import FUSE_RESIDUAL
from .magnitudes import MAGNITUDES
from .merge_linear import MERGE_CONV, MERGE_LINEAR
from .products import ADDED_BIAS, PRODUCT
from .trim_taps import TRIM_TAPS

# in an order in which no rule undoes the work of another
RULES: Mapping[FuseRule, tuple[Rule, ...]] = {
    "product": (PRODUCT, ADDED_BIAS),
    "pad": (FOLD_PAD, TRIM_TAPS),
    "batchnorm": (FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE),
    "linear": (MERGE_LINEAR, MERGE_CONV),
    "residual": (FUSE_RESIDUAL,),
    "activation": (FUSE_ACTIVATION,),
    "magnitude": MAGNITUDES,
}


@register(FuseOptions)
def fuse(graph: Graph, options: FuseOptions, context: Context) -> PassResult:
    """Fuses operators into layers; each rule walks the graph once."""

    def is_kept(source: Source) -> bool:
        return context.selects_any(options.keep, source)

    rules = [rule for name, own in RULES.items() if name not in options.disable for rule in own]
    decisions: list[Decision] = []
    for rule in (*rules, *map(_rule_of_package, options.add)):
        graph, decided = apply_rule(graph, rule, is_kept=is_kept)
        decisions += decided
    return PassResult(graph, PassReport("fuse", tuple(decisions)))


def _rule_of_package(name: str) -> Rule:
    """The rule that a package adds under this name; PassError if it cannot be used."""
    try:
        rule = FUSION_RULES.load(name)
    except PluginError as err:
        raise PassError(err.message) from err
    if not isinstance(rule, Rule):
        raise PassError(f'fusion rule "{name}" is a {type(rule).__name__}, not a `Rule`')
    return rule
