"""Rewrites of operators to arithmetic that has an integer form.

A batch norm that is not merged into a layer becomes:

[n, c, ...]   a depthwise convolution with kernel 1: weight scale[c], bias shift[c] [n, c]        x * scale + shift

A division by a constant becomes a product, and sqrt(a^2 + b^2) a magnitude; roundings to half precision are removed.
"""

from __future__ import annotations

from ...ir import Builder, Value
from ...ir.ops.binary import Add, Div, Mul
from ...ir.ops.conv import Conv
from ...ir.ops.elementary import RoundTo
from ...ir.ops.norm import BatchNorm
from ..fuse.fold_batchnorm import norm_affine, why_not_fold
from ..fuse.magnitudes import MAGNITUDES
from ..pattern import OPTIONAL, Application, Match, Rule, Term, op
from ..weighted_layers import clamp_of

_RANKS = (2, 3, 4, 5)


def _norm(x: Term, mean: Term, var: Term, *, gamma: Term = OPTIONAL, beta: Term = OPTIONAL) -> Application:
    return op(BatchNorm)(x, gamma, beta, mean, var)


def _why_not(match: Match) -> str | None:
    if match.root.output.type.rank not in _RANKS:
        return f"batch norm of rank {match.root.output.type.rank}"
    return why_not_fold(match, match.root)


def _lower(builder: Builder, match: Match) -> Value:
    x, name, source = match.value("x"), match.root.output.name, match.root.source
    affine, dtype = norm_affine(match, match.root), match.value("x").type.dtype.torch
    stem = match.value("mean").name.removesuffix("running_mean")
    spatial = x.type.rank - 2
    scale, shift = affine.scale.to(dtype), affine.shift.to(dtype)
    if not spatial:
        product = builder.add(
            Mul(), x, builder.derived_constant(f"{stem}scale", scale), name=f"{name}_scaled", source=source
        )
        return builder.add(
            Add(), product, builder.derived_constant(f"{stem}shift", shift), name=name, source=source
        )
    layer = Conv((1,) * spatial, (0, 0) * spatial, (1,) * spatial, groups=x.type.shape[1])
    weight = builder.derived_constant(f"{stem}scale", scale.view(-1, 1, *[1] * spatial))
    return builder.add(
        layer, x, weight, builder.derived_constant(f"{stem}shift", shift), name=name, source=source
    )


LOWER_BATCHNORM = Rule(
    "lower_batchnorm", _norm, _why_not, _lower, "is not fused; computed as a scale and a shift"
)


def _division(x: Term, divisor: Term) -> Application:
    return op(Div)(x, divisor)


def _why_not_division(match: Match) -> str | None:
    divisor = match.tensor(match.value("divisor"))
    if divisor is None:
        return "the divisor is not a constant"
    return None if bool((1 / divisor).isfinite().all()) else "the divisor has no finite reciprocal"


def _lower_division(builder: Builder, match: Match) -> Value:
    divisor, division = match.value("divisor"), match.root
    tensor = match.tensor(divisor)
    assert tensor is not None
    reciprocal = builder.derived_constant(f"{divisor.name}_reciprocal", 1 / tensor)
    product = Mul(clamp_of(division.op))
    return builder.add(
        product, match.value("x"), reciprocal, name=division.output.name, source=division.source
    )


LOWER_DIVISION = Rule(
    "lower_division", _division, _why_not_division, _lower_division, "multiplied by the reciprocal"
)


def _half(x: Term) -> Application:
    return op(RoundTo)(x)


DROP_HALF = Rule(
    "drop_half",
    _half,
    lambda match: None,
    lambda builder, match: match.value("x"),
    "the integers have steps of their own, and float is no less exact",
)
"""Rule that drops roundings to half precision after an operator."""

INTEGER_FORMS: tuple[Rule, ...] = (LOWER_BATCHNORM, LOWER_DIVISION, *MAGNITUDES)
