"""Functions of one element in portable C: a table of 256 results on int8, bounds on int16, an expression on float."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .....ir.interpolation import ENTRIES
from .....ir.ops.accumulate import clamp_bounds
from .....ir.ops.activation import (
    FRACTION_BITS,
    TABLE_BITS,
    Bounded,
    Clamp,
    Elementwise,
    Elu,
    Gelu,
    Hardshrink,
    LeakyRelu,
    Softplus,
    Softshrink,
    Threshold,
)
from .....ir.ops.elementary import Pow, RoundTo
from .....ir.ops.quantize import rescale_between
from ...plan.layout import contiguous
from ...write.literal import real
from ..base import Offers, Site, Work, kernel, offer
from ..rounding import clamped, rescaled, saturated
from .quantize import ConversionContext, narrowed

_LIBM_EXP = re.compile(r"\bexpf\(")
_FUNCTION = re.compile(r"\b([a-z0-9]+f)\(")  # names of C library functions


@dataclass(frozen=True)
class UnaryContext:
    """Template context; `value` is the C expression of a float result from `v`."""

    title: str
    count: int
    lowest: int
    value: str


@dataclass(frozen=True, slots=True)
class Expression:
    """A float function: C expression over `v`, and whether it needs libm."""

    text: Callable[[Elementwise], str]
    libm: bool = False


def _clamp(op: Elementwise) -> str:
    assert isinstance(op, Clamp)
    return clamped("v", (op.low, op.high))


def _leaky_relu(op: Elementwise) -> str:
    assert isinstance(op, LeakyRelu)
    return f"v > 0.0f ? v : v * {real(op.slope)}"


def _gelu(op: Elementwise) -> str:
    assert isinstance(op, Gelu)
    if op.approximate == "tanh":
        return "0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)))"
    return "0.5f * v * (1.0f + erff(v * 0.7071067812f))"


def _elu(op: Elementwise) -> str:
    assert isinstance(op, Elu)
    negative = f"{real(op.scale * op.alpha)} * expm1f({real(op.input_scale)} * v)"
    return f"v > 0.0f ? {real(op.scale)} * v : {negative}"


def _softplus(op: Elementwise) -> str:
    assert isinstance(op, Softplus)
    beta = real(op.beta)
    return f"v * {beta} > {real(op.threshold)} ? v : log1pf(expf(v * {beta})) / {beta}"


def _pow(op: Elementwise) -> str:
    assert isinstance(op, Pow)
    return "v * v" if op.exponent == 2.0 else f"powf(v, {real(op.exponent)})"


def _threshold(op: Elementwise) -> str:
    assert isinstance(op, Threshold)
    return f"v <= {real(op.threshold)} ? {real(op.value)} : v"


def _softshrink(op: Elementwise) -> str:
    assert isinstance(op, Softshrink)
    bound = real(op.lambd)
    return f"v > {bound} ? v - {bound} : v < -{bound} ? v + {bound} : v * 0.0f"


def _hardshrink(op: Elementwise) -> str:
    assert isinstance(op, Hardshrink)
    return f"v >= -{real(op.lambd)} && v <= {real(op.lambd)} ? 0.0f : v"


def _round_to(op: Elementwise) -> str:
    assert isinstance(op, RoundTo)
    return f"fxp_round_{op.dtype}(v)"


_EXPRESSIONS: dict[str, Expression] = {
    "relu": Expression(lambda _: "fxp_maximum(v, 0.0f)"),
    "clamp": Expression(_clamp),
    "leaky_relu": Expression(_leaky_relu),
    "hardswish": Expression(lambda _: "v * fxp_minimum(fxp_maximum(v + 3.0f, 0.0f), 6.0f) / 6.0f"),
    "hardsigmoid": Expression(lambda _: "fxp_minimum(fxp_maximum(v + 3.0f, 0.0f), 6.0f) / 6.0f"),
    "sigmoid": Expression(lambda _: "1.0f / (1.0f + expf(-v))", libm=True),
    "tanh": Expression(lambda _: "tanhf(v)", libm=True),
    "gelu": Expression(_gelu, libm=True),
    "silu": Expression(lambda _: "v / (1.0f + expf(-v))", libm=True),
    "elu": Expression(_elu, libm=True),
    "log_sigmoid": Expression(lambda _: "fxp_minimum(v, 0.0f) - log1pf(expf(-fabsf(v)))", libm=True),
    "mish": Expression(lambda _: "v * tanhf(fxp_maximum(v, 0.0f) + log1pf(expf(-fabsf(v))))", libm=True),
    "softplus": Expression(_softplus, libm=True),
    "abs": Expression(lambda _: "v < 0.0f ? -v : v"),
    "neg": Expression(lambda _: "-v"),
    "exp": Expression(lambda _: "expf(v)", libm=True),
    "log": Expression(lambda _: "logf(v)", libm=True),
    "log1p": Expression(lambda _: "log1pf(v)", libm=True),
    "sqrt": Expression(lambda _: "sqrtf(v)", libm=True),
    "rsqrt": Expression(lambda _: "1.0f / sqrtf(v)", libm=True),
    "reciprocal": Expression(lambda _: "1.0f / v"),
    "pow": Expression(_pow, libm=True),
    "sin": Expression(lambda _: "sinf(v)", libm=True),
    "cos": Expression(lambda _: "cosf(v)", libm=True),
    "erf": Expression(lambda _: "erff(v)", libm=True),
    "floor": Expression(lambda _: "floorf(v)", libm=True),
    "round": Expression(lambda _: "rintf(v)", libm=True),
    "ceil": Expression(lambda _: "ceilf(v)", libm=True),
    "trunc": Expression(lambda _: "truncf(v)", libm=True),
    "sign": Expression(lambda _: "v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : v == 0.0f ? 0.0f : v"),
    "exp2": Expression(lambda _: "exp2f(v)", libm=True),
    "expm1": Expression(lambda _: "expm1f(v)", libm=True),
    "log2": Expression(lambda _: "log2f(v)", libm=True),
    "log10": Expression(lambda _: "log10f(v)", libm=True),
    "tan": Expression(lambda _: "tanf(v)", libm=True),
    "asin": Expression(lambda _: "asinf(v)", libm=True),
    "acos": Expression(lambda _: "acosf(v)", libm=True),
    "atan": Expression(lambda _: "atanf(v)", libm=True),
    "sinh": Expression(lambda _: "sinhf(v)", libm=True),
    "cosh": Expression(lambda _: "coshf(v)", libm=True),
    "asinh": Expression(lambda _: "asinhf(v)", libm=True),
    "acosh": Expression(lambda _: "acoshf(v)", libm=True),
    "atanh": Expression(lambda _: "atanhf(v)", libm=True),
    "threshold": Expression(_threshold),
    "softshrink": Expression(_softshrink),
    "hardshrink": Expression(_hardshrink),
    "round_to": Expression(_round_to),
}


@kernel(*_EXPRESSIONS)
def portable(site: Site) -> Offers:
    """One element after the other, in any layout."""
    op = site.node.op
    assert isinstance(op, Elementwise)
    layout = site.at_hand("x") or contiguous(site.output.shape)
    count = layout.elements(site.output.shape)
    in_place = not site.is_constant("x") and site.type("x").dtype is site.output.dtype
    overwrites, follows = (0,) if in_place else (), narrowed(site)
    made = partial(offer, site, reads={"x": layout}, writes=(layout,), overwrites=overwrites, follows=follows)
    if not site.is_integer:
        expression = _EXPRESSIONS[op.name]
        value = expression.text(op)
        if site.machine.is_host:  # a function that becomes vector instructions
            value = _LIBM_EXP.sub("fxp_exp(", value)
        return made(
            "portable/unary.c.j2",
            UnaryContext(f"{op.name} of {count} elements", count, 0, value),
            Work(results=8.0 * count, code_bytes=60),
            uses_math=expression.libm,
            variant=" ".join([op.name, *_FUNCTION.findall(value)]),
        )
    qx, qy = site.quantization("x"), site.output_quantization
    if qx.bits <= TABLE_BITS:
        element = np.dtype(np.int8 if qy.bits == 8 else np.int16)
        return made(
            "portable/table.c.j2",
            UnaryContext(f"Table of {op.name} over {count} elements", count, -qx.qmin, ""),
            Work(results=5.0 * count, code_bytes=60),
            constants={"table": (qx.qmax - qx.qmin + 1) * element.itemsize},
            pack=lambda: [op.table(site.type("x"), site.output).numpy().astype(element)],
        )
    if not isinstance(op, Bounded):
        between = "fxp_interpolate(entries, x[i])"
        if qy.bits <= TABLE_BITS:
            between = f"({between} + {1 << (FRACTION_BITS - 1)}) >> {FRACTION_BITS}"
        return made(
            "portable/interpolated.c.j2",
            UnaryContext(
                f"{op.name} of {count} elements, between 513 entries",
                count,
                0,
                saturated(between, qy.qmin, qy.qmax),
            ),
            Work(results=13.0 * count, code_bytes=80),
            constants={"entries": 2 * ENTRIES},
            pack=lambda: [op.entries(site.type("x"), site.output).numpy().astype(np.int16)],
            headers=("arithmetic.h", "interpolation.h"),
        )
    value = saturated(rescaled(rescale_between(qx, qy), "v"), *clamp_bounds(op.bounds, qy))
    bounded = ConversionContext(f"{op.name} of {count} elements", count, "int32_t", value)
    work = Work(results=8.0 * count, code_bytes=60)
    return made("portable/convert.c.j2", bounded, work, variant="bounded")
